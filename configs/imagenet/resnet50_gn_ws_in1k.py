# Tables 1 to 4 and 6, row GN+WS: top-1 error 23.72 in the paper.
_base_ = './resnet50_gn_in1k.py'
conv_cfg = dict(type='ConvWS')
model = dict(backbone=dict(conv_cfg=conv_cfg))
