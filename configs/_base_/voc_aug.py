# PASCAL VOC 2012 with the augmented training set of 10,582 images (tools/prepare_voc_aug.py), crop 513.
data_root = '{{$VOC_ROOT:data/VOCdevkit/VOC2012}}'
crop_size = (513, 513)

# Images per update over all processes; each process takes its share.
total_batch_size = 16
num_processes = int('{{$WORLD_SIZE:1}}')

data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    size=crop_size,  # padded after normalization, on the right and at the bottom: images with 0, labels with 255
    pad_val=0,
    seg_pad_val=255,
    test_cfg=dict(size=crop_size))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomLogScale', scale_range=(0.5, 2.0)),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=1.0),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs')
]
test_pipeline = [  # each image at its own size
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[[dict(type='Resize', scale_factor=factor, keep_ratio=True)
                     for factor in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)],
                    [dict(type='RandomFlip', prob=0.0, direction='horizontal'),
                     dict(type='RandomFlip', prob=1.0, direction='horizontal')],
                    [dict(type='LoadAnnotations')], [dict(type='PackSegInputs')]])
]
tta_model = dict(type='SegTTAModel')

train_dataloader = dict(
    batch_size=total_batch_size // num_processes,
    num_workers=2,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='PascalVOCDataset',
        data_root=data_root,
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassAug'),
        ann_file='ImageSets/Segmentation/trainaug.txt',
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='PascalVOCDataset',
        data_root=data_root,
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        ann_file='ImageSets/Segmentation/val.txt',
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
