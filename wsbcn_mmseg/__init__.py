"""Micro-batch training with Weight Standardization and Batch-Channel Normalization (arXiv 1903.10520).

These need torch only: the layers ``BCN`` and ``ConvWS``, :func:`convert_model`, :func:`plan_conversion`, :func:`fold`,
:func:`follow_learning_rate` and :func:`save_memory`.
If OpenMMLab is installed, importing this package registers its layers, hooks, data sets and network parts. Configs of
any OpenMMLab project can use them after ``custom_imports = dict(imports=['wsbcn_mmseg'])``. :func:`apply_bcn_ws`
converts configs, :func:`load_segmentor` and :func:`infer` use trained segmentors.
"""
import warnings

from . import conversion, layers, ops
from .conversion import convert_model, fold, fuse_relu, plan_conversion
from .layers import BCN, ConvWS, ConvWS1d, ConvWS3d, follow_learning_rate
from .memory import save_memory
from .runtime.stack import (
    check_stack,
    declare_torchvision_operators,
    missing_openmmlab,
    openmmlab_in_part,
    quiet_import,
)

__version__ = '0.2.0'
_OF_OPENMMLAB = ('apply_bcn_ws', 'datasets', 'engine', 'hooks', 'infer', 'load_segmentor', 'models')
__all__ = ['BCN', 'ConvWS', 'ConvWS1d', 'ConvWS3d', 'conversion', 'convert_model', 'fold', 'follow_learning_rate',
           'fuse_relu', 'layers', 'ops', 'plan_conversion', 'save_memory']

check_stack()
declare_torchvision_operators()
if not missing_openmmlab():
    with quiet_import():
        from . import datasets, engine, hooks, models, registration  # noqa: F401
        from .conversion.config import apply_bcn_ws  # noqa: F401
        from .inference import infer, load_segmentor  # noqa: F401
    __all__ += _OF_OPENMMLAB
elif openmmlab_in_part():
    warnings.warn(f'OpenMMLab is partly installed, so wsbcn_mmseg registers nothing: it needs {missing_openmmlab()}',
                  stacklevel=2)


def __getattr__(name: str):
    if name in _OF_OPENMMLAB:  # not imported above
        raise ImportError(f'wsbcn_mmseg.{name} needs {missing_openmmlab()}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
