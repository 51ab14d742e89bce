"""Networks rewritten: which convolution feeds which norm, and what is done with that knowledge."""
from .fold import fold

__all__ = ['fold']
