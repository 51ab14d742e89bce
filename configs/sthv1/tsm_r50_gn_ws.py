# Table 12, GN+WS: top-1 44.26, top-5 75.51 in the paper.
_base_ = '_base_/tsm_r50.py'
model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=32), conv_cfg=dict(type='ConvWS')))
