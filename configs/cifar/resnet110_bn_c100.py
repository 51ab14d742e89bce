# Table 7, CIFAR-100, BN: error 28.86 in the paper.
_base_ = '../_base_/cifar100_resnet110.py'
norm_cfg = dict(type='BN')
model = dict(backbone=dict(norm_cfg=norm_cfg))
