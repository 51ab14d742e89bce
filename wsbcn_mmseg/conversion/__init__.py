"""Networks rewritten: which convolution feeds which norm, and what is done with that knowledge."""
from .config import apply_bcn_ws
from .convert import ConversionReport, convert_model
from .converted_model import build_converted_model
from .fold import fold

__all__ = ['ConversionReport', 'apply_bcn_ws', 'build_converted_model', 'convert_model', 'fold']
