"""The residual networks of He et al. 2016, Section 4.2, for images of 32 x 32."""
from typing import Any

from mmcv.cnn import build_conv_layer, build_norm_layer
from mmengine.registry import MODELS
from mmseg.models.backbones.resnet import BasicBlock, ResNet
from torch import nn


@MODELS.register_module()
class CIFARResNet(ResNet):
    """ResNet of 6n + 2 layers: a 3x3 stem, three stages of n basic blocks with 16, 32 and 64 channels.

    Where the width changes, the shortcut is a 1x1 convolution and a norm (option B of He et al.), as in the authors'
    public training code.

    Args:
        depth: 8, 20, 32, 44, 56 or 110.
        kwargs: Further arguments of MMSegmentation's ``ResNet``, such as ``norm_cfg`` and ``conv_cfg``.

    Input shape (N, 3, H, W); output a tuple of one tensor of shape (N, 64, H/4, W/4).
    """
    arch_settings = {depth: (BasicBlock, ((depth - 2) // 6, ) * 3) for depth in (8, 20, 32, 44, 56, 110)}

    def __init__(self, depth: int, **kwargs: Any):
        stages = dict(num_stages=3, stem_channels=16, base_channels=16, strides=(1, 2, 2), dilations=(1, 1, 1),
                      out_indices=(2, ))
        super().__init__(depth, **{**stages, **kwargs})

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        self.conv1 = build_conv_layer(self.conv_cfg, in_channels, stem_channels, 3, padding=1, bias=False)
        self.norm1_name, norm1 = build_norm_layer(self.norm_cfg, stem_channels, postfix=1)
        self.add_module(self.norm1_name, norm1)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity()
