"""The head of DeepLabV3 (Chen et al. 2017) as the paper trained it."""
import torch
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads.aspp_head import ASPPHead
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class DeepLabV3Head(ASPPHead):
    """ASPP with the image-pooling branch last in the concatenation, and a 1x1 projection.

    MMSegmentation's ``ASPPHead`` has that branch first and projects by 3x3. Arguments, input and output shapes are
    those of ``ASPPHead``.
    """

    def __init__(self, dilations=(1, 6, 12, 18), **kwargs):
        super().__init__(dilations, **kwargs)
        self.bottleneck = ConvModule((len(dilations) + 1) * self.channels, self.channels, 1, conv_cfg=self.conv_cfg,
                                     norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)

    def _forward_feature(self, inputs: list[Tensor]) -> Tensor:
        x = self._transform_inputs(inputs)
        pooled = resize(self.image_pool(x), x.shape[2:], mode='bilinear', align_corners=self.align_corners)
        return self.bottleneck(torch.cat([*self.aspp_modules(x), pooled], dim=1))
