# Table 10, RN101, GN: box AP50 60.9 in the paper.
_base_ = '_base_/faster_rcnn_r101_1x.py'
norm_cfg = dict(type='GN', num_groups=32)
model = dict(
    backbone=dict(norm_cfg=norm_cfg),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(bbox_head=dict(norm_cfg=norm_cfg)))
