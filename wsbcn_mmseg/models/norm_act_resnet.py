"""ResNets for norms that contain their activation (:mod:`wsbcn_mmseg.layers.norm_act`)."""
from typing import Any

from mmengine.registry import MODELS
from mmseg.models.backbones.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from wsbcn_mmseg.layers.norm_act import NormAct

from .cifar_resnet import CIFARResNet


class NormActBlock(BasicBlock):
    """Residual block of two 3x3 convolutions. Only the first norm contains its activation. The norms of the second
    convolution and the shortcut do not; ReLU follows the addition, and the second norm's scale is initialized to 0, as
    in a ResNet with other norms."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.norm2.apply_act = False
        nn.init.zeros_(self.norm2.weight)
        for layer in self.downsample or ():
            if isinstance(layer, NormAct):
                layer.apply_act = False

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.norm1(self.conv1(x))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def _with_norm_act(settings: dict) -> dict:
    return {depth: (NormActBlock, stages) for depth, (block, stages) in settings.items() if block is BasicBlock}


@MODELS.register_module()
class NormActResNet(ResNet):
    """MMSegmentation's ResNet-18 or ResNet-34 without the activations that its norms contain."""
    arch_settings = _with_norm_act(ResNet.arch_settings)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.relu = nn.Identity()  # after the stem's norm


@MODELS.register_module()
class NormActCIFARResNet(CIFARResNet):
    """:class:`CIFARResNet` without the activations that its norms contain."""
    arch_settings = _with_norm_act(CIFARResNet.arch_settings)

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        super()._make_stem_layer(in_channels, stem_channels)
        self.relu = nn.Identity()
