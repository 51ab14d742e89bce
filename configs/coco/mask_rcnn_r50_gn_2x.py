# Table 9, RN50, GN: 39.8 box AP, 36.1 mask AP in the paper.
_base_ = '_base_/mask_rcnn_r50_2x.py'
norm_cfg = dict(type='GN', num_groups=32)
model = dict(
    backbone=dict(norm_cfg=norm_cfg),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(bbox_head=dict(norm_cfg=norm_cfg), mask_head=dict(norm_cfg=norm_cfg)))
