"""Import paths of earlier releases. Plots are now in :mod:`wsbcn_mmseg.plotting`, logs in
:mod:`wsbcn_mmseg.runtime.records`."""
from wsbcn_mmseg.plotting import COLORS, MARKERS, plot_curves, plot_predictions, plot_runs
from wsbcn_mmseg.runtime.records import read_jsonl, read_scalars, write_csv

__all__ = ['COLORS', 'MARKERS', 'plot_curves', 'plot_predictions', 'plot_runs', 'read_jsonl', 'read_scalars',
           'write_csv']
