# DeepLabV3 on EfficientNet-Lite0 with ImageNet weights, at output stride 16. WEIGHTS is the file that
# tools/finetune_camvid.py prepares.
_base_ = './camvid.py'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(_base_.data_preprocessor, mean=[127.5] * 3, std=[127.5] * 3),  # as its weights expect
    backbone=dict(
        type='TIMMBackbone', model_name='tf_efficientnet_lite0', features_only=True, pretrained=False,
        output_stride=16, out_indices=(4, ),
        init_cfg=dict(type='PretrainedBackbone', checkpoint='{{$WEIGHTS:efficientnet_lite0.pth}}')),
    decode_head=dict(
        type='DeepLabV3Head', in_channels=320, in_index=0, channels=64, dilations=(1, 2, 4, 6), dropout_ratio=0,
        num_classes=11, align_corners=True, loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
optim_wrapper = dict(optimizer=dict(lr=0.01))  # best for frozen BN and single images, of the rates that were tried
