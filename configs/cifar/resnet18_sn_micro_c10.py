# Table 8, SN, 2 images: error 7.62 in the paper, cited from the paper of DN.
_base_ = './resnet18_bn_micro_c10.py'
norm_cfg = dict(_delete_=True, type='SwitchableNorm')
model = dict(backbone=dict(norm_cfg=norm_cfg))
