from .camvid import CamVidDataset
from .digits import Digits
from .transforms import RandomLogScale

__all__ = ['CamVidDataset', 'Digits', 'RandomLogScale']
