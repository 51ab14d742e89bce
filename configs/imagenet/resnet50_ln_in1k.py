# Table 1, row LN: top-1 error 27.22 in the paper. GroupNorm with one group.
_base_ = './resnet50_gn_in1k.py'
norm_cfg = dict(num_groups=1)
model = dict(backbone=dict(norm_cfg=norm_cfg))
