"""Layers based on :mod:`wsbcn_mmseg.ops`; they need only torch."""
from .adaptive_conv_ws import AdaptiveConvWS, AdaptiveConvWS1d, AdaptiveConvWS3d
from .baselines import ConvCWN, ConvWN, ConvWSStdEps, GNByWidth
from .bcn import BCN
from .conv_ws import ConvWS, ConvWS1d, ConvWS3d
from .held_kernels import HeldKernels
from .norm_act import FRN, EvoNormS0
from .switchable_norm import SwitchableNorm
from .update_rate import UpdateRate, follow_learning_rate, make_capturable

__all__ = ['BCN', 'FRN', 'AdaptiveConvWS', 'AdaptiveConvWS1d', 'AdaptiveConvWS3d', 'ConvCWN', 'ConvWN', 'ConvWS',
           'ConvWS1d', 'ConvWS3d', 'ConvWSStdEps', 'EvoNormS0', 'GNByWidth', 'HeldKernels', 'SwitchableNorm',
           'UpdateRate', 'follow_learning_rate', 'make_capturable']
