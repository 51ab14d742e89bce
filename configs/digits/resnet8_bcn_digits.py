# Ours: BCN on the digits.
_base_ = '../_base_/digits.py'
model = dict(backbone=dict(norm_cfg=dict(type='BCN', mode=_base_.mode, min_channels_per_group=4)))
