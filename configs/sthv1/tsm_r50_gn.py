# Table 12, GN: top-1 42.07, top-5 73.20 in the paper.
_base_ = '_base_/tsm_r50.py'
model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=32)))
