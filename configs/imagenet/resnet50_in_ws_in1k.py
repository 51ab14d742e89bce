# Table 1, row IN+WS: top-1 error 28.24 in the paper.
_base_ = './resnet50_in_in1k.py'
conv_cfg = dict(type='ConvWS')
model = dict(backbone=dict(conv_cfg=conv_cfg))
