# Faster R-CNN and a head for masks. 2x: 180,000 updates of 16 images, here of 8.
_base_ = 'faster_rcnn_r50_1x.py'
model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(pad_mask=True),
    roi_head=dict(
        mask_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=2),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32]),
        mask_head=dict(
            type='FCNMaskHead',
            num_convs=4,
            in_channels=256,
            conv_out_channels=256,
            num_classes=80,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True))),
    train_cfg=dict(rcnn=dict(mask_size=28)),
    test_cfg=dict(rcnn=dict(mask_thr_binary=0.5)))
val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator

param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 3, begin=0, end=500, by_epoch=False),
    dict(type='MultiStepLR', milestones=[300000, 340000], gamma=0.1, by_epoch=False)
]
train_cfg = dict(max_iters=360000)
