# Table 12, BCN+WS: top-1 45.27, top-5 75.22 in the paper. The paper does not name the mode of BCN; this is Algorithm 1.
_base_ = '_base_/tsm_r50.py'
model = dict(backbone=dict(norm_cfg=dict(type='BCN'), conv_cfg=dict(type='ConvWS')))
custom_hooks = [dict(type='BCNUpdateRateHook'), dict(type='SyncNormStatisticsHook')]
