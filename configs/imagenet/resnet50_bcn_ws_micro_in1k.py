# Ours, the paper has no such row: Algorithm 1 with one image per process.
_base_ = './resnet50_gn_ws_in1k.py'
norm_cfg = dict(_delete_=True, type='BCN')
model = dict(backbone=dict(norm_cfg=norm_cfg, zero_init_residual=True))
