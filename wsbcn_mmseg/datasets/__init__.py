from .transforms import RandomLogScale

__all__ = ['RandomLogScale']
