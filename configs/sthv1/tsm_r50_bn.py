# Table 12, BN: top-1 44.30, top-5 74.53 in the paper.
_base_ = '_base_/tsm_r50.py'
model = dict(backbone=dict(norm_cfg=dict(type='BN')))
