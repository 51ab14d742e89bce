# Table 11, row BCN+WS: 78.22 mIoU in the paper. Large-batch BCN, statistics over all processes.
_base_ = ['_base_/deeplabv3_r101.py', '_base_/schedule_30k.py', '_base_/default_runtime.py']
norm_cfg = dict(type='BCN', mode='large_batch', sync=True, momentum=0.1)
conv_cfg = dict(type='ConvWS')
model = dict(
    backbone=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg),
    decode_head=dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg))
