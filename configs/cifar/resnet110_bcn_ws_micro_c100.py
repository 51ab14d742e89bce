# Table 7, CIFAR-100, BCN+WS, 1 image: error 28.28 in the paper.
_base_ = './resnet110_gn_ws_c100.py'
norm_cfg = dict(_delete_=True, type='BCN', min_channels_per_group=4)
model = dict(backbone=dict(norm_cfg=norm_cfg))
