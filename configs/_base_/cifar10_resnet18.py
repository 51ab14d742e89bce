# ResNet-18 for images of 32 x 32 (Table 8): 3x3 stem, no pooling, four stages.
_base_ = './cifar10.py'
model = dict(
    backbone=dict(type='ResNet_CIFAR', depth=18, out_indices=(3, ), zero_init_residual=False),
    head=dict(in_channels=512))
