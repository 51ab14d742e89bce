# Ours: BCN+WS on CamVid from scratch; Algorithm 1 with single images (CAMVID_BATCH=1), large-batch BCN otherwise.
_base_ = '../_base_/camvid_deeplabv3_r18.py'
norm_cfg = dict(
    type='BCN', mode='micro_batch' if _base_.total_batch_size == 1 else 'large_batch', min_channels_per_group=16)
conv_cfg = dict(type='ConvWS')
model = dict(
    backbone=dict(norm_cfg=norm_cfg, conv_cfg=conv_cfg), decode_head=dict(norm_cfg=norm_cfg, conv_cfg=conv_cfg))
custom_hooks = [dict(type='BCNUpdateRateHook'), dict(type='SyncNormStatisticsHook')]
