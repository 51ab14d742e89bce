# The authors' repository, not the paper: ResNeXt-50 (32x4d), GN+WS, 40.25 box AP.
_base_ = 'faster_rcnn_r50_gn_ws_1x.py'
model = dict(backbone=dict(type='ResNeXt', groups=32, base_width=4))
