# Ours: fine-tuning with BCN+WS from weights that were trained with BN.
_base_ = '../_base_/camvid_efficientnet_lite0.py'
model = dict(
    type='ConvertedModel',
    conversion=dict(
        type='EncoderDecoder', norm=dict(type='BCN', min_channels_per_group=64), include=['backbone'], preserve=True),
    decode_head=dict(norm_cfg=dict(type='BCN', min_channels_per_group=16), conv_cfg=dict(type='ConvWS')))
custom_hooks = [dict(type='CalibrateHook'), dict(type='BCNUpdateRateHook'), dict(type='NormEvalHook')]
