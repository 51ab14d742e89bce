# Table 8, BN: error 5.20 in the paper.
_base_ = '../_base_/cifar10_resnet18.py'
norm_cfg = dict(type='BN')
model = dict(backbone=dict(norm_cfg=norm_cfg))
