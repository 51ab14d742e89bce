"""Network parts that the paper's models need and OpenMMLab does not have."""
from .cifar_resnet import CIFARResNet
from .deeplabv3_head import DeepLabV3Head
from .norm_act_resnet import NormActCIFARResNet, NormActResNet
from .pretrained_backbone import PretrainedBackbone

__all__ = ['CIFARResNet', 'DeepLabV3Head', 'NormActCIFARResNet', 'NormActResNet', 'PretrainedBackbone']
