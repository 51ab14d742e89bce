"""Rewriting of networks, based on which convolution feeds which norm."""
from .convert import convert_model, plan_conversion
from .fold import fold
from .fuse_relu import fuse_relu, unfuse_relu
from .report import ConversionError, ConversionReport

__all__ = ['ConversionError', 'ConversionReport', 'convert_model', 'fold', 'fuse_relu', 'plan_conversion',
           'unfuse_relu']


def __getattr__(name: str):
    """Import names that need OpenMMLab only when they are used."""
    if name == 'apply_bcn_ws':
        from .config import apply_bcn_ws
        return apply_bcn_ws
    if name == 'build_converted_model':
        from .converted_model import build_converted_model
        return build_converted_model
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
