"""Training with less activation memory: blocks are recomputed in the backward pass, from what was dear to compute."""
from .saving import LEVELS, save_memory

__all__ = ['LEVELS', 'save_memory']
