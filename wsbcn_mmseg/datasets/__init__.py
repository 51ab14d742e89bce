from .digits import Digits
from .transforms import RandomLogScale

__all__ = ['Digits', 'RandomLogScale']
