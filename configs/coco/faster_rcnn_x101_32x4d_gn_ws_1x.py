# The authors' repository, not the paper: ResNeXt-101 (32x4d), GN+WS, 41.90 box AP.
_base_ = 'faster_rcnn_r101_gn_ws_1x.py'
model = dict(backbone=dict(type='ResNeXt', groups=32, base_width=4))
