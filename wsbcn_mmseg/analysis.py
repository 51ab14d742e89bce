"""Old import paths: diagnostics and experiments were one package, ``wsbcn_mmseg.analysis``, before."""
import sys

from wsbcn_mmseg.diagnostics import singularities, smoothness
from wsbcn_mmseg.experiments import comparison, watched_runs
from wsbcn_mmseg.experiments import paper_figures as experiments
from wsbcn_mmseg.experiments import watched_runs as figures

for _name in ('singularities', 'smoothness', 'comparison', 'experiments', 'figures'):
    sys.modules[f'{__name__}.{_name}'] = globals()[_name]

__all__ = ['comparison', 'experiments', 'figures', 'singularities', 'smoothness', 'watched_runs']
