# Ours: fine-tuning with BCN+WS whose estimates follow the new images, for data that differ from those of the weights.
_base_ = './efficientnet_lite0_bcn_ws_camvid.py'
custom_hooks = [dict(type='CalibrateHook'), dict(type='BCNUpdateRateHook')]
