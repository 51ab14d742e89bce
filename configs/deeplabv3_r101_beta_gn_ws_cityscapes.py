# The authors' Cityscapes script with GN+WS and --beta, a stem of three 3x3 convolutions. ImageNet weights for it are
# not published; the script trains it from scratch.
_base_ = './deeplabv3_r101_gn_ws_cityscapes.py'
model = dict(backbone=dict(type='ThreeConvStemResNet'))
