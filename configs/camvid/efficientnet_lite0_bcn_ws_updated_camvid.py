# Ours, for comparison: fine-tuning with BCN+WS whose estimates follow the new images, at the learning rate.
_base_ = './efficientnet_lite0_bcn_ws_camvid.py'
custom_hooks = [dict(type='CalibrateHook'), dict(type='BCNUpdateRateHook')]
