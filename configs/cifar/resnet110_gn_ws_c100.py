# Table 7, CIFAR-100, GN+WS, 1 image: error 29.49 in the paper.
_base_ = './resnet110_gn_c100.py'
conv_cfg = dict(type='ConvWS')
model = dict(backbone=dict(conv_cfg=conv_cfg))
