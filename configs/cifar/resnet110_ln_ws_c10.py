# Figure 6, LN+WS (its statistical differences; no error in the paper).
_base_ = './resnet110_ln_c10.py'
conv_cfg = dict(type='ConvWS')
model = dict(backbone=dict(conv_cfg=conv_cfg))
