# Table 7, CIFAR-10, GN+WS, 1 image: error 6.82 in the paper.
_base_ = './resnet110_gn_c10.py'
conv_cfg = dict(type='ConvWS')
model = dict(backbone=dict(conv_cfg=conv_cfg))
