# Table 4, row "/ std" (Eq. 12 alone): top-1 error 24.60 in the paper.
_base_ = './resnet50_gn_in1k.py'
conv_cfg = dict(type='ConvWS', center=False)
model = dict(backbone=dict(conv_cfg=conv_cfg))
