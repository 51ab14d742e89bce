# A ResNet of 8 layers on the handwritten digits of scikit-learn; DIGITS_BATCH images per update, without accumulation.
_base_ = './classification.py'
total_batch_size = int('{{$DIGITS_BATCH:128}}')
max_epochs = 4 if total_batch_size == 1 else 30
mode = 'micro_batch' if total_batch_size == 1 else 'large_batch'  # of BCN

data_preprocessor = dict(type='ClsDataPreprocessor', num_classes=10, mean=[73.0], std=[90.0], to_rgb=False)
pipeline = [dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=total_batch_size // _base_.num_processes,
    num_workers=0,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='Digits', split='train', pipeline=pipeline))
val_dataloader = dict(
    batch_size=450,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='Digits', split='test', pipeline=pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=0.005 if total_batch_size == 1 else 0.1))
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, T_max=max_epochs, convert_to_iter_based=True)]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
default_hooks = dict(checkpoint=dict(interval=max_epochs, save_best=None))
model = dict(
    type='ImageClassifier',
    data_preprocessor=data_preprocessor,
    backbone=dict(type='CIFARResNet', depth=8, in_channels=1),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, )))
