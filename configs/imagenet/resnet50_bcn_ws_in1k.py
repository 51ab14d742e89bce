# Table 6, row BCN+WS: top-1 error 23.09 in the paper. Large-batch BCN, each process its own
# statistics.
_base_ = './resnet50_bn_ws_in1k.py'
norm_cfg = dict(_delete_=True, type='BCN', mode='large_batch')
model = dict(backbone=dict(norm_cfg=norm_cfg, zero_init_residual=True))
