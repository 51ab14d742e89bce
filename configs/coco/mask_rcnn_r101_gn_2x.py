# Table 9, RN101, GN: 41.5 box AP, 37.0 mask AP in the paper.
_base_ = '_base_/mask_rcnn_r101_2x.py'
norm_cfg = dict(type='GN', num_groups=32)
model = dict(
    backbone=dict(norm_cfg=norm_cfg),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(bbox_head=dict(norm_cfg=norm_cfg), mask_head=dict(norm_cfg=norm_cfg)))
