# Table 7, CIFAR-10, BCN+WS, 1 image: error 6.31 in the paper.
_base_ = './resnet110_gn_ws_c10.py'
norm_cfg = dict(_delete_=True, type='BCN', min_channels_per_group=4)
model = dict(backbone=dict(norm_cfg=norm_cfg))
