# ResNet-110 of basic blocks (Table 7).
_base_ = './cifar10.py'
model = dict(
    backbone=dict(type='CIFARResNet', depth=110, zero_init_residual=False), head=dict(in_channels=64))
