"""A data set for the examples: light rectangles on dark noise, drawn anew from each index."""
import torch
from torch import Tensor
from torch.utils.data import Dataset


class DrawnShapes(Dataset):
    """Images (3, 64, 64) with one rectangle, and label maps (64, 64): 1 inside it, 0 outside.

    Args:
        length: Number of images.
    """

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(index)
        top, left = torch.randint(4, 32, (2, ), generator=generator).tolist()
        height, width = torch.randint(12, 28, (2, ), generator=generator).tolist()
        label = torch.zeros(64, 64, dtype=torch.long)
        label[top:top + height, left:left + width] = 1
        return torch.randn(3, 64, 64, generator=generator) * 0.3 + label, label
