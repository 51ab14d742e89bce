"""Layers over :mod:`wsbcn_mmseg.ops`; they need torch alone."""
from .adaptive_conv_ws import AdaptiveConvWS, AdaptiveConvWS1d, AdaptiveConvWS3d
from .baselines import ConvCWN, ConvWN, GNByWidth
from .bcn import BCN
from .conv_ws import ConvWS, ConvWS1d, ConvWS3d

__all__ = ['BCN', 'AdaptiveConvWS', 'AdaptiveConvWS1d', 'AdaptiveConvWS3d', 'ConvCWN', 'ConvWN', 'ConvWS', 'ConvWS1d',
           'ConvWS3d', 'GNByWidth']
