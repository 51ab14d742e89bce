# Frozen BatchNorm, what is usual today: the backbone's statistics stay those of ImageNet; GN+WS in the new head.
_base_ = '../_base_/camvid_efficientnet_lite0.py'
model = dict(decode_head=dict(
    norm_cfg=dict(type='GNByWidth', min_channels_per_group=16), conv_cfg=dict(type='ConvWS')))
custom_hooks = [dict(type='NormEvalHook')]
