# Table 2, row BN+WS: top-1 error 21.89 in the paper.
_base_ = './resnet101_bn_in1k.py'
conv_cfg = dict(type='ConvWS')
model = dict(backbone=dict(conv_cfg=conv_cfg))
