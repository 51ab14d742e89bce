# Tables 1 and 2, row BN: top-1 error 24.30 in the paper.
_base_ = '../_base_/imagenet_resnet50.py'
norm_cfg = dict(type='BN')
model = dict(backbone=dict(norm_cfg=norm_cfg))
