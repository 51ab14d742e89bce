# Ours: BCN+WS on CamVid from scratch, by Algorithm 1, which was best with one image per update and with eight.
_base_ = '../_base_/camvid_deeplabv3_r18.py'
norm_cfg = dict(type='BCN', min_channels_per_group=16)
conv_cfg = dict(type='ConvWS')
model = dict(
    backbone=dict(norm_cfg=norm_cfg, conv_cfg=conv_cfg), decode_head=dict(norm_cfg=norm_cfg, conv_cfg=conv_cfg))
custom_hooks = [dict(type='BCNUpdateRateHook'), dict(type='SyncNormStatisticsHook')]
train_cfg = dict(val_interval=max(1, _base_.max_iters // 4))  # four points of the curve
