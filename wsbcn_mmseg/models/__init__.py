"""Network parts that the paper's models need and OpenMMLab does not have."""
from .deeplabv3_head import DeepLabV3Head
from .pretrained_backbone import PretrainedBackbone

__all__ = ['DeepLabV3Head', 'PretrainedBackbone']
