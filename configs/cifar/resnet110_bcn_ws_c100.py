# Table 7, CIFAR-100, BCN+WS, 128 images: error 28.36 in the paper.
_base_ = '../_base_/cifar100_resnet110.py'
norm_cfg = dict(type='BCN', mode='large_batch', min_channels_per_group=4)
conv_cfg = dict(type='ConvWS')
model = dict(backbone=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg))
