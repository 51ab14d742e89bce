"""Training with less activation memory: what is cheap to compute is computed again in the backward pass."""
from .saving import save_memory

__all__ = ['save_memory']
