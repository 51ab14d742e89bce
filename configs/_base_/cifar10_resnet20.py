# ResNet-20 on CIFAR-10 at a budget for a CPU (tools/run_cifar.py): CIFAR_BATCH images per update, CIFAR_EPOCHS epochs.
# CIFAR_ROOT holds cifar-10-batches-py.
_base_ = './cifar10.py'
total_batch_size = int('{{$CIFAR_BATCH:128}}')
epochs = int('{{$CIFAR_EPOCHS:10}}')

train_dataloader = dict(batch_size=total_batch_size // _base_.num_processes)
optim_wrapper = dict(optimizer=dict(lr=0.1 if total_batch_size > 2 else 0.1 * total_batch_size / 128))
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, T_max=epochs, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
default_hooks = dict(logger=dict(interval=5000 // total_batch_size), checkpoint=dict(interval=epochs, save_best=None))
model = dict(backbone=dict(type='CIFARResNet', depth=20, zero_init_residual=False), head=dict(in_channels=64))
