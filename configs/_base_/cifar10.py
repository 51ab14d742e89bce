# CIFAR-10: shifts of up to 4 pixels, mirroring, channels standardized. Epochs, steps, weight decay, the last batch of
# 80 images and the classifier's start (PyTorch's own) are those of the authors' public training script.
_base_ = './classification.py'
data_root = '{{$CIFAR_ROOT:data/cifar}}'  # holds cifar-10-batches-py and cifar-100-python
data_preprocessor = dict(
    type='ClsDataPreprocessor', num_classes=10, mean=[125.307, 122.961, 113.8575], std=[51.5865, 50.847, 51.255],
    to_rgb=False)

train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs')
]
total_batch_size = 128
train_dataloader = dict(
    batch_size=total_batch_size // _base_.num_processes,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CIFAR10', data_root=data_root, split='train', download=False, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=100,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CIFAR10', data_root=data_root, split='test', download=False, pipeline=[dict(type='PackInputs')]))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator

param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[81, 122], gamma=0.1)]
train_cfg = dict(by_epoch=True, max_epochs=164, val_interval=1)
model = dict(
    type='ImageClassifier',
    data_preprocessor=data_preprocessor,
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=10, loss=dict(type='CrossEntropyLoss', loss_weight=1.0), topk=(1, ),
        init_cfg=None))
