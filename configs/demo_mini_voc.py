# Ours: a small DeepLabV3 with micro-batch BCN and WS that learns the synthetic mini VOC in minutes on two CPU cores,
# at half the images' size.
_base_ = ['_base_/deeplabv3_r101.py', '_base_/schedule_30k.py', '_base_/default_runtime.py']
norm_cfg = dict(type='BCN')
conv_cfg = dict(type='ConvWS')
crop_size = (161, 161)
max_iters = 700

model = dict(
    data_preprocessor=dict(size=crop_size, test_cfg=dict(size=(257, 257))),
    backbone=dict(
        depth=18, base_channels=32, conv_cfg=conv_cfg, norm_cfg=norm_cfg, zero_init_residual=True),
    decode_head=dict(
        in_channels=256, channels=64, conv_cfg=conv_cfg, norm_cfg=norm_cfg,
        init_cfg=dict(type='Normal', std=0.01, override=dict(name='conv_seg'))))  # MMSegmentation's

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomLogScale', scale_range=(0.4, 0.7)),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=1.0),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale_factor=0.5, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
total_batch_size = 8
train_dataloader = dict(
    batch_size=total_batch_size // _base_.num_processes, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.05))
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=max_iters + 1, by_epoch=False)]
train_cfg = dict(max_iters=max_iters, val_interval=175)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=max_iters, save_best=None))
custom_hooks = [dict(type='BCNUpdateRateHook'), dict(type='SyncNormStatisticsHook')]
