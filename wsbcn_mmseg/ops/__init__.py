"""Tensor functions: Weight Standardization and Batch-Channel Normalization. They depend on torch only."""
from .batch_channel_norm import batch_channel_norm
from .self_check import agree_on_kernels, check_kernels
from .standardized_convolution import standardized_convolution
from .weight_standardization import standardize_weight

__all__ = ['agree_on_kernels', 'batch_channel_norm', 'check_kernels', 'standardize_weight', 'standardized_convolution']
