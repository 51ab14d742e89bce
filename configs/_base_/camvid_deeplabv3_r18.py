# A DeepLabV3 for minutes on a CPU: ResNet-18 of half width at output stride 16, a head of 64 channels.
_base_ = './camvid.py'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        type='ResNet', depth=18, base_channels=32, out_indices=(3, ), strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2),
        contract_dilation=True, norm_eval=False),
    decode_head=dict(
        type='DeepLabV3Head', in_channels=256, in_index=0, channels=64, dilations=(1, 2, 4, 6), dropout_ratio=0,
        num_classes=11, align_corners=True, loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
