# Table 6, row BCN+WS: top-1 error 21.29 in the paper. Large-batch BCN, each process its own
# statistics. Where Table 11 starts from.
_base_ = './resnet101_bn_ws_in1k.py'
norm_cfg = dict(_delete_=True, type='BCN', mode='large_batch')
model = dict(backbone=dict(norm_cfg=norm_cfg, zero_init_residual=True))
