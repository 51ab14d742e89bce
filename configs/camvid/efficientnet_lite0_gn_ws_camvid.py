# Ours, for comparison: fine-tuning with GN+WS from weights that were trained with BN, with one group per layer.
_base_ = './efficientnet_lite0_frozen_bn_camvid.py'
model = dict(
    type='ConvertedModel',
    conversion=dict(type='EncoderDecoder', norm=dict(type='GN', num_groups=1), include=['backbone'], preserve=True))
custom_hooks = []
