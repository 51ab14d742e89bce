# TSM with ResNet-50 on 8 frames of Something-Something V1: 45 epochs, batch 32 over four processes. A config on top
# sets norm_cfg and conv_cfg. The layers take N*T maps of shape (C, H, W).
custom_imports = dict(imports=['wsbcn_mmseg'], allow_failed_imports=False)
default_scope = 'mmaction'
data_root = '{{$STHV1_ROOT:data/sthv1}}'
pretrained = '{{$PRETRAINED:none}}'  # a classification checkpoint, trained with the same normalization
initialization = {} if pretrained == 'none' else dict(
    init_cfg=dict(
        type='PretrainedBackbone',
        checkpoint=pretrained,
        rename=[  # from names of image networks, such as layer1.0.bcn1, to MMAction2's
            (r'\b(bn|gn|bcn)(\d)\.', r'conv\2.\1.'), (r'\bconv(\d)\.(weight|bias)$', r'conv\1.conv.\2'),
            (r'downsample\.0\.', 'downsample.conv.'), (r'downsample\.1\.', 'downsample.{norm}.'),
            (r'(layer\d\.\d\.conv1\.conv)\.', r'\1.net.')
        ]))
frames = 8

model = dict(
    type='Recognizer2D',
    backbone=dict(
        type='ResNetTSM', depth=50, num_segments=frames, shift_div=8, norm_eval=False, pretrained2d=False,
        **initialization),
    cls_head=dict(
        type='TSMHead',
        num_classes=174,
        in_channels=2048,
        num_segments=frames,
        spatial_type='avg',
        consensus=dict(type='AvgConsensus', dim=1),
        dropout_ratio=0.5,
        init_std=0.001,
        is_shift=True,
        average_clips='prob'),
    data_preprocessor=dict(
        type='ActionDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
        format_shape='NCHW'))

train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='RawframeDataset',
        ann_file=f'{data_root}/sthv1_train_list_rawframes.txt',
        data_prefix=dict(img=f'{data_root}/rawframes'),
        filename_tmpl='{:05}.jpg',
        pipeline=[
            dict(type='SampleFrames', clip_len=1, frame_interval=1, num_clips=frames),
            dict(type='RawFrameDecode'),
            dict(type='Resize', scale=(-1, 256)),
            dict(type='MultiScaleCrop', input_size=224, scales=(1, 0.875, 0.75, 0.66), random_crop=False,
                 max_wh_scale_gap=1, num_fixed_crops=13),
            dict(type='Resize', scale=(224, 224), keep_ratio=False),
            dict(type='FormatShape', input_format='NCHW'),  # not mirrored: left and right are among the classes
            dict(type='PackActionInputs')
        ]))
val_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='RawframeDataset',
        ann_file=f'{data_root}/sthv1_val_list_rawframes.txt',
        data_prefix=dict(img=f'{data_root}/rawframes'),
        filename_tmpl='{:05}.jpg',
        test_mode=True,
        pipeline=[
            dict(type='SampleFrames', clip_len=1, frame_interval=1, num_clips=frames, test_mode=True),
            dict(type='RawFrameDecode'),
            dict(type='Resize', scale=(-1, 256)),
            dict(type='CenterCrop', crop_size=224),
            dict(type='FormatShape', input_format='NCHW'),
            dict(type='PackActionInputs')
        ]))
test_dataloader = val_dataloader
val_evaluator = dict(type='AccMetric')
test_evaluator = val_evaluator

# Weight decay, momentum and clipping are those of TSM's training script; the paper does not give them.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.0125, momentum=0.9, weight_decay=5e-4),
    clip_grad=dict(max_norm=20))
param_scheduler = [dict(type='MultiStepLR', milestones=[26, 36], gamma=0.1, by_epoch=True, begin=0, end=45)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=45, val_interval=5)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

env_cfg = dict(
    cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl'))
randomness = dict(seed=0)
default_hooks = dict(
    runtime_info=dict(type='RuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2, save_best='auto'),
    sampler_seed=dict(type='DistSamplerSeedHook'))
custom_hooks = [dict(type='SyncNormStatisticsHook')]  # what is saved is what was validated
visualizer = dict(type='ActionVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(type='LogProcessor', window_size=20, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
