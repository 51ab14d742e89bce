# Table 12, BN+WS: top-1 46.49, top-5 76.46 in the paper.
_base_ = '_base_/tsm_r50.py'
model = dict(backbone=dict(norm_cfg=dict(type='BN'), conv_cfg=dict(type='ConvWS')))
