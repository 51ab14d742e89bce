# Ours: fine-tuning with BCN+WS from weights that were trained with BN: one group per layer, whose scale and shift are
# calibrated, and estimates that stay those of the weights; GN+WS in the new head.
_base_ = './efficientnet_lite0_frozen_bn_camvid.py'
model = dict(
    type='ConvertedModel',
    conversion=dict(type='EncoderDecoder', norm=dict(type='BCN', num_groups=1), include=['backbone'], preserve=True))
custom_hooks = [dict(type='CalibrateHook'), dict(type='NormEvalHook')]
optim_wrapper = dict(optimizer=dict(lr=0.02))  # best of the rates that were tried
