# Table 3, row CWN: top-1 error 24.23 in the paper.
_base_ = './resnet50_gn_wn_in1k.py'
conv_cfg = dict(type='ConvCWN')
model = dict(backbone=dict(conv_cfg=conv_cfg))
