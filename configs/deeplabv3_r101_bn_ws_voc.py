# Table 11, row BN+WS: 77.15 mIoU in the paper.
_base_ = './deeplabv3_r101_bn_voc.py'
conv_cfg = dict(type='ConvWS')
model = dict(backbone=dict(conv_cfg=conv_cfg), decode_head=dict(conv_cfg=conv_cfg))
