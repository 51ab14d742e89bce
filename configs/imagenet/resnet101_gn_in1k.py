# Tables 2 and 6, row GN: top-1 error 22.87 in the paper.
_base_ = '../_base_/imagenet_resnet101.py'
norm_cfg = dict(type='GN', num_groups=32)
model = dict(backbone=dict(norm_cfg=norm_cfg))

# One image per process; gradients are averaged over as many forward passes as make up the images of an update
accumulation = max(1, _base_.total_batch_size // _base_.num_processes)
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(accumulative_counts=accumulation)
default_hooks = dict(logger=dict(interval=100 * accumulation))
