# Ours: GN on the digits.
_base_ = '../_base_/digits.py'
model = dict(backbone=dict(norm_cfg=dict(type='GNByWidth', min_channels_per_group=4)))
