# Table 3, row WN: top-1 error 25.09 in the paper.
_base_ = './resnet50_gn_in1k.py'
conv_cfg = dict(type='ConvWN')
model = dict(
    backbone=dict(
        conv_cfg=conv_cfg,
        init_cfg=[
            dict(type='Kaiming', layer=['Conv2d']),
            dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
            dict(type='GainOfKernel')  # the length of each kernel
        ]))
