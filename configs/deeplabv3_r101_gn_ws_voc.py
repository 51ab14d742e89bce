# Table 11, row GN+WS: 77.20 mIoU in the paper.
_base_ = './deeplabv3_r101_gn_voc.py'
conv_cfg = dict(type='ConvWS')
model = dict(backbone=dict(conv_cfg=conv_cfg), decode_head=dict(conv_cfg=conv_cfg))
