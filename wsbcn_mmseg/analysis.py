"""Import paths of earlier releases. ``wsbcn_mmseg.analysis.singularities`` and ``wsbcn_mmseg.analysis.smoothness`` are
now in :mod:`wsbcn_mmseg.diagnostics`."""
import sys

from wsbcn_mmseg.diagnostics import singularities, smoothness

__all__ = ['singularities', 'smoothness']
sys.modules |= {f'{__name__}.{module.__name__.rpartition(".")[2]}': module for module in (singularities, smoothness)}
