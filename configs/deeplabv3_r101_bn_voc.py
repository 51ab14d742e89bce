# Table 11, row BN: 76.49 mIoU in the paper. Statistics are each process's own.
_base_ = ['_base_/deeplabv3_r101.py', '_base_/schedule_30k.py', '_base_/default_runtime.py']
model = dict(
    backbone=dict(norm_cfg=dict(type='BN', momentum=0.05)),
    decode_head=dict(norm_cfg=dict(type='BN', momentum=0.0003)))
