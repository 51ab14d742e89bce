# Figure 1, RN101, BN frozen: about 36.4 mask AP, read off the bars. The stock network of maskrcnn-benchmark: no norm
# outside the backbone, a head of two fully connected layers, steps at 2/3 and 8/9.
_base_ = '_base_/mask_rcnn_r101_2x.py'
model = dict(
    backbone=dict(norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True),
    roi_head=dict(bbox_head=dict(type='Shared2FCBBoxHead')))
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 3, begin=0, end=500, by_epoch=False),
    dict(type='MultiStepLR', milestones=[480000, 640000], gamma=0.1, by_epoch=False)
]
