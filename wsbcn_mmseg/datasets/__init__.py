"""Data sets and transforms that OpenMMLab does not have."""
from .camvid import CamVidDataset
from .cifar_images import CIFAR10Images
from .digits import Digits
from .transforms import RandomLogScale

__all__ = ['CIFAR10Images', 'CamVidDataset', 'Digits', 'RandomLogScale']
