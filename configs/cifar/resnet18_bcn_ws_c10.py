# Table 8, BCN+WS: error 4.96 in the paper.
_base_ = '../_base_/cifar10_resnet18.py'
norm_cfg = dict(type='BCN', mode='large_batch', num_groups=32)
conv_cfg = dict(type='ConvWS')
model = dict(backbone=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg))
