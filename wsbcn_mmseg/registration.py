"""The connection to OpenMMLab: importing this module registers everything. The package imports it where OpenMMLab is
installed, and it is the one place that decides.

Layers go into MMEngine's root registry, so that every project finds them; hooks, data sets, transforms and network
parts register themselves where they are defined.
"""
import mmcv.cnn  # noqa: F401  (registers a ConvWS of its own, which divides by another deviation; ours replaces it)
from mmengine.registry import MODELS

from . import datasets, hooks, layers, models  # noqa: F401  (register themselves)
from .conversion import converted_model  # noqa: F401

for _name in layers.__all__:
    MODELS.register_module(module=getattr(layers, _name), force=True)
