# The authors' repository, not the paper: ResNeXt-101 (32x4d), GN+WS, 43.12 box AP, 38.34 mask AP.
_base_ = 'mask_rcnn_r101_gn_ws_2x.py'
model = dict(backbone=dict(type='ResNeXt', groups=32, base_width=4))
