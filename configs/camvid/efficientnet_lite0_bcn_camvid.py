# Ours: fine-tuning with BCN, without Weight Standardization in the backbone.
_base_ = './efficientnet_lite0_bcn_ws_camvid.py'
model = dict(conversion=dict(ws=False))
