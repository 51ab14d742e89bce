# Ours: GN+WS on the digits.
_base_ = './resnet8_gn_digits.py'
model = dict(backbone=dict(conv_cfg=dict(type='ConvWS')))
