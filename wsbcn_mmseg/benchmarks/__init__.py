"""Time and memory of BCN and Weight Standardization, compared with the layers they replace: single layers, training
steps, and inference.

Each module exports one :class:`~wsbcn_mmseg.benchmarks.measuring.Benchmark`: a function of ``Options`` that returns
rows (one measurement each), the columns of its table, and a function that draws the rows. To add a benchmark, write
such a module and add it to :data:`BENCHMARKS` in :mod:`.report`.
"""
from .measuring import Options
from .report import BENCHMARKS, results_table, write_results

__all__ = ['BENCHMARKS', 'Options', 'results_table', 'write_results']
