"""Training with less activation memory: cheap operations are recomputed in the backward pass."""
from .saving import save_memory

__all__ = ['save_memory']
