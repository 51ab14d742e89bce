"""Plots of finished runs."""
from .predictions import images_of_run, plot_predictions
from .run_curves import plot_curves, plot_runs
from .style import COLORS, MARKERS

__all__ = ['COLORS', 'MARKERS', 'plot_curves', 'plot_predictions', 'plot_runs', 'images_of_run']
