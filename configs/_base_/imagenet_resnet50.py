# ResNet-50: 90 epochs of 256 images per update, 64 on each of four GPUs.
_base_ = './imagenet.py'
total_batch_size = 256
model = dict(backbone=dict(depth=50))
train_dataloader = dict(batch_size=total_batch_size // _base_.num_processes)
train_cfg = dict(by_epoch=True, max_epochs=90, val_interval=1)
