# Ordinary BatchNorm, whose statistics follow the batches; no norm in the pooled branch, whose maps have one position.
_base_ = '../_base_/camvid_efficientnet_lite0.py'
model = dict(decode_head=dict(norm_cfg=dict(type='BN'), pool_norm=False))
