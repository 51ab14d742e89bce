# Table 4, row "- mean" (Eq. 11 alone): top-1 error 23.96 in the paper.
_base_ = './resnet50_gn_in1k.py'
conv_cfg = dict(type='ConvWS', scale=False)
model = dict(backbone=dict(conv_cfg=conv_cfg))
