# Table 2, row BN: top-1 error 22.44 in the paper.
_base_ = '../_base_/imagenet_resnet101.py'
norm_cfg = dict(type='BN')
model = dict(backbone=dict(norm_cfg=norm_cfg))
