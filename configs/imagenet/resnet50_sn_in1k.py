# Table 2, row SN: top-1 error 25.00 in the paper, cited from the paper of SN. One image per process, so instance and
# layer statistics only.
_base_ = './resnet50_gn_in1k.py'
norm_cfg = dict(_delete_=True, type='SwitchableNorm', batch_statistics=False)
model = dict(backbone=dict(norm_cfg=norm_cfg))
