# ResNeXt-101 (32x4d): 100 epochs of 128 images per update.
_base_ = './imagenet.py'
total_batch_size = 128
model = dict(backbone=dict(type='ResNeXt', depth=101, groups=32, width_per_group=4))
train_dataloader = dict(batch_size=total_batch_size // _base_.num_processes)
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
