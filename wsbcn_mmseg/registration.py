"""Importing this module registers all parts of the package with OpenMMLab. The package imports it if OpenMMLab is
installed.

Layers are added to MMEngine's root registry, which all OpenMMLab projects search. Hooks, data sets, transforms and
network parts are registered where they are defined. MMEngine gets the location of ``_base_ = 'wsbcn_mmseg::...'``.
"""
import mmcv.cnn  # noqa: F401  (registers a ConvWS of its own, which divides by another deviation; ours replaces it)
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import MODELS
from torch import nn

from . import datasets, hooks, layers, models  # noqa: F401  (register themselves)
from .conversion import converted_model  # noqa: F401

for _layer in (getattr(layers, name) for name in layers.__all__):
    if isinstance(_layer, type) and issubclass(_layer, nn.Module):
        MODELS.register_module(module=_layer, force=True)

# A module, not the distribution: MMEngine uses the first package of a distribution, and this one has two
MODULE2PACKAGE['wsbcn_mmseg'] = 'wsbcn_mmseg.registry'
