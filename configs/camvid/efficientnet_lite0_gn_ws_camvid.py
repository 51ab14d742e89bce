# Ours, for comparison: fine-tuning with GN+WS from weights that were trained with BN, with one group per layer.
_base_ = './efficientnet_lite0_bcn_ws_camvid.py'
model = dict(conversion=dict(norm=dict(type='GN')))
custom_hooks = []
optim_wrapper = dict(optimizer=dict(lr=0.01))  # best of the rates that were tried
