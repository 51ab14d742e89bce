"""The ResNet "beta" of the authors' DeepLabV3 script."""
from mmcv.cnn import build_conv_layer, build_norm_layer
from mmengine.registry import MODELS
from mmseg.models.backbones.resnet import ResNet
from torch import nn


@MODELS.register_module()
class ThreeConvStemResNet(ResNet):
    """ResNet whose 7x7 stem is replaced by three 3x3 convolutions, with nothing between them and one norm after them.

    Option ``--beta`` of chenxi116/DeepLabv3.pytorch. MMSegmentation's ``ResNetV1c`` has a norm and a ReLU after each of
    the three, and half the channels in the first two. Arguments, input and output shapes are those of ``ResNet``.
    """

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        def convolution(channels: int, stride: int) -> nn.Module:
            return build_conv_layer(self.conv_cfg, channels, stem_channels, 3, stride=stride, padding=1, bias=False)

        self.conv1 = nn.Sequential(convolution(in_channels, 2), convolution(stem_channels, 1),
                                   convolution(stem_channels, 1))
        self.norm1_name, norm1 = build_norm_layer(self.norm_cfg, stem_channels, postfix=1)
        self.add_module(self.norm1_name, norm1)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
