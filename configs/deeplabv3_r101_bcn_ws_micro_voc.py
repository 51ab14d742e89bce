# Ours, the paper has no such row: Algorithm 1 with one image per process, gradients accumulated to 16 images.
# Iterations count forward passes, so schedule and intervals scale with the accumulation.
_base_ = './deeplabv3_r101_bcn_ws_voc.py'
norm_cfg = dict(_delete_=True, type='BCN', mode='micro_batch')
model = dict(backbone=dict(norm_cfg=norm_cfg), decode_head=dict(norm_cfg=norm_cfg))

accumulation = max(1, _base_.total_batch_size // _base_.num_processes)
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(accumulative_counts=accumulation)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=30000 * accumulation + 1, by_epoch=False)]
train_cfg = dict(max_iters=30000 * accumulation, val_interval=5000 * accumulation)
default_hooks = dict(checkpoint=dict(interval=5000 * accumulation))
custom_hooks = [
    dict(type='BCNUpdateRateHook'), dict(type='SyncNormStatisticsHook'), dict(type='HeldKernelsHook')]
