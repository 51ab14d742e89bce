# The synthetic mini VOC at half the images' size, and a DeepLabV3 that learns it in minutes on two CPU cores. A config
# on top sets norm_cfg and conv_cfg.
_base_ = ['./deeplabv3_r101.py', './schedule_30k.py', './default_runtime.py']
crop_size = (161, 161)
max_iters = 700

model = dict(
    data_preprocessor=dict(size=crop_size, test_cfg=dict(size=(257, 257))),
    backbone=dict(depth=18, base_channels=32, zero_init_residual=True),
    decode_head=dict(
        in_channels=256, channels=64,
        init_cfg=dict(_delete_=True, type='Normal', std=0.01, override=dict(name='conv_seg'))))

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
