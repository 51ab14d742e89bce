# Ours, the paper has no such row: large-batch BCN.
_base_ = '../_base_/imagenet_resnext101.py'
norm_cfg = dict(type='BCN', mode='large_batch')
conv_cfg = dict(type='ConvWS')
model = dict(backbone=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, zero_init_residual=True))
