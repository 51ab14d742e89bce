# The authors' repository, not the paper: ResNeXt-50 (32x4d), GN+WS, 42.00 box AP, 37.28 mask AP.
_base_ = 'mask_rcnn_r50_gn_ws_2x.py'
model = dict(backbone=dict(type='ResNeXt', groups=32, base_width=4))
