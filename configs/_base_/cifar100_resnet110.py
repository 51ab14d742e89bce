# ResNet-110 on CIFAR-100 (Table 7).
_base_ = './cifar10_resnet110.py'
dataset = dict(type='CIFAR100')
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = dict(dataset=dataset)
model = dict(data_preprocessor=dict(num_classes=100), head=dict(num_classes=100))
