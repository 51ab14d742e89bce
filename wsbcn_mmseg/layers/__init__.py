"""Layers over :mod:`wsbcn_mmseg.ops`, registered in MMEngine's root registry so that every OpenMMLab project finds
them."""
from .baselines import ConvCWN, ConvWN, GNByWidth
from .bcn import BCN
from .conv_ws import ConvWS, ConvWS1d, ConvWS3d

__all__ = ['BCN', 'ConvCWN', 'ConvWN', 'ConvWS', 'ConvWS1d', 'ConvWS3d', 'GNByWidth']
