# Tables 1 and 2, row BN+WS: top-1 error 23.76 in the paper.
_base_ = './resnet50_bn_in1k.py'
conv_cfg = dict(type='ConvWS')
model = dict(backbone=dict(conv_cfg=conv_cfg))
