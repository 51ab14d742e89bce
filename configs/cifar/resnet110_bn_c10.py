# Table 7, CIFAR-10, BN: error 6.43 in the paper.
_base_ = '../_base_/cifar10_resnet110.py'
norm_cfg = dict(type='BN')
model = dict(backbone=dict(norm_cfg=norm_cfg))
