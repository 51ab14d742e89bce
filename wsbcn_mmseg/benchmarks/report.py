"""Write benchmark results as tables, CSV files and plots, with a description of the machine."""
import datetime
import importlib
import importlib.util
import os
import platform
from pathlib import Path

import mmcv
import mmseg
import torch
from rich.table import Table

import wsbcn_mmseg
from wsbcn_mmseg.runtime.records import write_csv

from . import accumulation, deployment, kernels, layers, memory, networks, traffic, watching
from .measuring import Options, Row

BENCHMARKS = {'layers': layers.BENCHMARK, 'networks': networks.BENCHMARK, 'memory': memory.BENCHMARK,
              'watching': watching.BENCHMARK, 'accumulation': accumulation.BENCHMARK,
              'deployment': deployment.BENCHMARK, 'kernels': kernels.BENCHMARK, 'traffic': traffic.BENCHMARK}


def _processor() -> str:
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), platform.processor())
    return f'{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}'


def machine(options: Options) -> Row:
    """Machine, versions and date of a measured row."""
    return {'device': options.device, 'memory_format': str(options.memory_format).removeprefix('torch.'),
            'cuda_graphs': options.cuda_graphs,
            'machine': _processor() if options.device == 'cpu' else torch.cuda.get_device_name(options.device),
            'threads': torch.get_num_threads(), **versions()}


def versions() -> Row:
    """Versions and date of a row."""
    triton = importlib.util.find_spec('triton') and importlib.import_module('triton').__version__
    return {'torch': torch.__version__, 'triton': triton, 'mmcv': mmcv.__version__, 'mmseg': mmseg.__version__,
            'wsbcn_mmseg': wsbcn_mmseg.__version__, 'date': datetime.date.today().isoformat()}


def file_stem(benchmark: str, options: Options) -> str:
    """Name of the benchmark's files, without extension."""
    if BENCHMARKS[benchmark].computed:
        return f'{benchmark}_quick' if options.quick else benchmark
    flags = [flag for flag in ('channels_last', 'cuda_graphs', 'quick') if getattr(options, flag)]
    return '_'.join([benchmark, options.device, BENCHMARKS[benchmark].dtype(options), *flags])


def results_table(title: str, rows: list[Row], columns: dict[str, str]) -> Table:
    """The rows for the terminal, with a section per shape. For layers, only forward and backward together are shown."""
    rows = [row for row in rows if row.get('pass') not in ('forward', 'backward')]
    shown = {key: spec for key, spec in columns.items() if any(row.get(key) is not None for row in rows)}
    result = Table(title=title)
    for key, spec in shown.items():
        result.add_column(key.replace('vs_', '/ ').replace('_', ' '), justify='right' if spec else 'left')
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        last = following is None or following.get('shape') != row.get('shape')
        result.add_row(*['' if row[key] is None else format(row[key], spec) for key, spec in shown.items()],
                       end_section=last)
    return result


def write_results(benchmark: str, rows: list[Row], options: Options, folder: Path) -> tuple[Path, Path]:
    """Write the rows, with columns for the machine, and their plot; return the paths of the CSV and PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{file_stem(benchmark, options)}.csv'
    if BENCHMARKS[benchmark].computed:
        rows = [row | versions() for row in rows]
        note = f'computed, not measured; triton {rows[0]["triton"]}; {path.stem}'
    else:
        rows = [row | {'dtype': BENCHMARKS[benchmark].dtype(options)} | machine(options) for row in rows]
        note = f'{rows[0]["machine"]}; torch {torch.__version__}; {path.stem}'
    write_csv(rows, path)
    figure = BENCHMARKS[benchmark].draw(rows)
    figure.supxlabel(note, fontsize='small', x=0.99, ha='right')
    figure.savefig(path.with_suffix('.png'), dpi=150)
    return path, path.with_suffix('.png')
