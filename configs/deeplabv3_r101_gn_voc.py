# Table 11, row GN: 74.90 mIoU in the paper.
_base_ = ['_base_/deeplabv3_r101.py', '_base_/schedule_30k.py', '_base_/default_runtime.py']
norm_cfg = dict(type='GN', num_groups=32)
model = dict(backbone=dict(norm_cfg=norm_cfg), decode_head=dict(norm_cfg=norm_cfg))
