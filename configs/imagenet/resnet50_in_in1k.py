# Table 1, row IN: top-1 error 29.49 in the paper.
_base_ = './resnet50_gn_in1k.py'
norm_cfg = dict(_delete_=True, type='IN', affine=True)
model = dict(backbone=dict(norm_cfg=norm_cfg))
