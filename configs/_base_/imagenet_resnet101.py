# ResNet-101: 100 epochs of 128 images per update, 32 on each of four GPUs.
_base_ = './imagenet.py'
total_batch_size = 128
model = dict(backbone=dict(depth=101))
train_dataloader = dict(batch_size=total_batch_size // _base_.num_processes)
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
