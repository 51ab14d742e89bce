"""Micro-batch training with Weight Standardization and Batch-Channel Normalization on OpenMMLab.

Importing this package registers all it offers: ``ConvWS``, ``ConvWS1d``, ``ConvWS3d`` and ``BCN`` in MMEngine's root
registry, hooks, network parts and data transforms. In a config of any OpenMMLab project,
``custom_imports = dict(imports=['wsbcn_mmseg'])`` is all that is needed. :func:`apply_bcn_ws` rewrites configs,
:func:`convert_model` networks.
"""
from .runtime.stack import check_stack, declare_torchvision_operators, quiet_import

check_stack()
declare_torchvision_operators()
with quiet_import():
    from . import conversion, datasets, engine, hooks, layers, models, ops
    from .conversion import apply_bcn_ws, convert_model, fold
    from .inference import infer, load_segmentor

__version__ = '0.1.0'
__all__ = ['apply_bcn_ws', 'conversion', 'convert_model', 'datasets', 'engine', 'fold', 'hooks', 'infer', 'layers',
           'load_segmentor', 'models', 'ops']
