# Figure 6, LN (its statistical differences; no error in the paper). GroupNorm with one group.
_base_ = './resnet110_gn_c10.py'
norm_cfg = dict(_delete_=True, type='GN', num_groups=1)
model = dict(backbone=dict(norm_cfg=norm_cfg))
