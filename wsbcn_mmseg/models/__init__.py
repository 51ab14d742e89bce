"""Parts of the paper's models that OpenMMLab does not have."""
from .cifar_resnet import CIFARResNet
from .deeplabv3_head import DeepLabV3Head
from .gain_of_kernel import GainOfKernel
from .norm_act_resnet import NormActCIFARResNet, NormActResNet
from .pretrained_backbone import PretrainedBackbone
from .three_conv_stem_resnet import ThreeConvStemResNet

__all__ = ['CIFARResNet', 'DeepLabV3Head', 'GainOfKernel', 'NormActCIFARResNet', 'NormActResNet',
           'PretrainedBackbone', 'ThreeConvStemResNet']
