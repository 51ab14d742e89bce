"""Tensor functions: Weight Standardization and Batch-Channel Normalization. They know torch and nothing else."""
from .batch_channel_norm import batch_channel_norm
from .standardized_convolution import standardized_convolution
from .weight_standardization import standardize_weight

__all__ = ['batch_channel_norm', 'standardize_weight', 'standardized_convolution']
