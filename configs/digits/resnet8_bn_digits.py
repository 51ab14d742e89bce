# Ours: BN on the digits.
_base_ = '../_base_/digits.py'
model = dict(backbone=dict(norm_cfg=dict(type='BN')))
