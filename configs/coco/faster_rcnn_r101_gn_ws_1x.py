# Table 10, RN101, GN+WS: 41.3 box AP, AP50 62.8 in the paper.
_base_ = '_base_/faster_rcnn_r101_1x.py'
norm_cfg = dict(type='GN', num_groups=32)
conv_cfg = dict(type='ConvWS')
model = dict(
    backbone=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg),
    neck=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg),
    roi_head=dict(bbox_head=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg)))
