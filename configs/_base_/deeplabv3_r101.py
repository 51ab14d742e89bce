# DeepLabV3 with ResNet-101 at output stride 16, as the paper trained it. A config on top sets norm_cfg and conv_cfg.
_base_ = './voc_aug.py'
pretrained = '{{$PRETRAINED:none}}'  # a classification checkpoint, trained with the same normalization
initialization = {} if pretrained == 'none' else dict(
    init_cfg=dict(type='PretrainedBackbone', checkpoint=pretrained))

model = dict(
    type='EncoderDecoder',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        type='ResNet',
        depth=101,
        out_indices=(3, ),
        strides=(1, 2, 2, 1),
        dilations=(1, 1, 1, 2),
        contract_dilation=True,  # multi-grid (1, 1, 1) of the paper: dilations (1, 2, 2) over the last three blocks
        norm_eval=False,
        zero_init_residual=False,  # where it starts without pretrained weights, as the authors'
        **initialization),
    decode_head=dict(
        type='DeepLabV3Head',
        in_channels=2048,
        in_index=0,
        channels=256,
        dilations=(1, 6, 12, 18),
        dropout_ratio=0,
        num_classes=21,
        align_corners=True,
        init_cfg=None,  # logits start as the authors', see DeepLabV3Head
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True)),  # the mean over labeled pixels only
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
