# Ours: a small DeepLabV3 with micro-batch BCN and WS on the synthetic mini VOC.
_base_ = '_base_/mini_voc.py'
norm_cfg = dict(type='BCN')
conv_cfg = dict(type='ConvWS')
model = dict(
    backbone=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg), decode_head=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg))
custom_hooks = [dict(type='BCNUpdateRateHook'), dict(type='SyncNormStatisticsHook')]
