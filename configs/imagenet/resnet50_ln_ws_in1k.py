# Table 1, row LN+WS: top-1 error 24.60 in the paper.
_base_ = './resnet50_ln_in1k.py'
conv_cfg = dict(type='ConvWS')
model = dict(backbone=dict(conv_cfg=conv_cfg))
