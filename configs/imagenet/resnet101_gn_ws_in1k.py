# Tables 2 and 6, row GN+WS: top-1 error 22.10 in the paper.
_base_ = './resnet101_gn_in1k.py'
conv_cfg = dict(type='ConvWS')
model = dict(backbone=dict(conv_cfg=conv_cfg))
