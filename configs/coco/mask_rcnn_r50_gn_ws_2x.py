# Table 9, RN50, GN+WS: 40.8 box AP, 36.5 mask AP in the paper.
_base_ = '_base_/mask_rcnn_r50_2x.py'
norm_cfg = dict(type='GN', num_groups=32)
conv_cfg = dict(type='ConvWS')
model = dict(
    backbone=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg),
    neck=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg),
    roi_head=dict(
        bbox_head=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg),
        mask_head=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg)))
