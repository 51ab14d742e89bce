# One image per process: half the images per update, half the learning rate, twice the updates.
_base_ = 'mask_rcnn_r50_2x.py'
model = dict(backbone=dict(depth=101), train_cfg=dict(rpn_proposal=dict(max_per_img=2000)))
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(optimizer=dict(lr=0.005))
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 3, begin=0, end=500, by_epoch=False),
    dict(type='MultiStepLR', milestones=[600000, 680000], gamma=0.1, by_epoch=False)
]
train_cfg = dict(max_iters=720000)
