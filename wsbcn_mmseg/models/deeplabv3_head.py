"""The head of DeepLabV3 (Chen et al. 2017) as trained in the paper."""
from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads.aspp_head import ASPPHead
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class DeepLabV3Head(ASPPHead):
    """ASPP with the image-pooling branch last in the concatenation, and a 1x1 projection.

    MMSegmentation's ``ASPPHead`` has that branch first and projects by 3x3. Arguments, input and output shapes are
    those of ``ASPPHead``.

    Args:
        dilations: Dilations of the branches. Defaults to (1, 6, 12, 18).
        pool_norm: Whether the image-pooling branch has a norm. Its maps have one position, so BatchNorm cannot train
            there with one image per process. Defaults to True.
        kwargs: Further arguments of ``ASPPHead``. With ``init_cfg=None`` the logits layer is initialized as in the
            authors' code: by PyTorch's default, uniform within 1/16 for 256 channels; if the network does not
            standardize its weights, its kernel is normal with variance 2 / num_classes, like all others
            (chenxi116/DeepLabv3.pytorch: deeplab.py initializes each instance of the network's convolution class, and
            the logits layer is of this class only without WS).
    """

    def __init__(self, dilations: Sequence[int] = (1, 6, 12, 18), pool_norm: bool = True, **kwargs: Any):
        super().__init__(dilations, **kwargs)
        if not pool_norm:
            self.image_pool[1] = ConvModule(self.in_channels, self.channels, 1, act_cfg=self.act_cfg)
        self.bottleneck = ConvModule((len(dilations) + 1) * self.channels, self.channels, 1, conv_cfg=self.conv_cfg,
                                     norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)

    def init_weights(self) -> None:
        super().init_weights()
        if self.init_cfg is not None:
            return
        self.conv_seg.reset_parameters()
        if type(self.bottleneck.conv) is nn.Conv2d:
            nn.init.kaiming_normal_(self.conv_seg.weight, mode='fan_out', nonlinearity='relu')

    def _forward_feature(self, inputs: list[Tensor]) -> Tensor:
        x = self._transform_inputs(inputs)
        pooled = resize(self.image_pool(x), x.shape[2:], mode='bilinear', align_corners=self.align_corners)
        return self.bottleneck(torch.cat([*self.aspp_modules(x), pooled], dim=1))
