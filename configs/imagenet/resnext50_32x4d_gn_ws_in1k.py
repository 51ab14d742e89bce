# Table 5, row GN+WS: top-1 error 22.71 in the paper.
_base_ = './resnext50_32x4d_gn_in1k.py'
conv_cfg = dict(type='ConvWS')
model = dict(backbone=dict(conv_cfg=conv_cfg))
