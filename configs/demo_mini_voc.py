# Ours: a small DeepLabV3 with BCN by Algorithm 1 and WS on the synthetic mini VOC; groups of at least 16 channels.
_base_ = '_base_/mini_voc.py'
norm_cfg = dict(type='BCN', min_channels_per_group=16)
conv_cfg = dict(type='ConvWS')
model = dict(
    backbone=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg), decode_head=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg))
custom_hooks = [dict(type='BCNUpdateRateHook'), dict(type='SyncNormStatisticsHook')]
