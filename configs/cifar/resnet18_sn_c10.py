# Table 8, SN: error 5.60 in the paper, cited from the paper of DN.
_base_ = '../_base_/cifar10_resnet18.py'
norm_cfg = dict(type='SwitchableNorm')
model = dict(backbone=dict(norm_cfg=norm_cfg))
