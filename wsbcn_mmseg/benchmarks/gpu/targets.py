"""Targets of the report, and whether its results reach them."""
import csv
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from wsbcn_mmseg.runtime.records import read_scalars

PASS, FAIL, MISSING = 'pass', 'FAIL', 'not measured'
LAYERS = {'one image': ('layers_batch_1', ), 'two and four images': ('layers_batch_2_and_4', ),
          'one and four images, CUDA graphs': ('layers_graphs', )}
LARGE = '4x256x129x129'  # an activation larger than any cache
OURS = 'BCN micro-batch'


class Target(NamedTuple):
    """A target, its result and its verdict: one line of the report."""
    name: str
    limit: str
    found: str
    verdict: str


def read(folder: Path, part: str) -> list[dict]:
    """Rows of the table that a part wrote; empty if there is no table."""
    rows = []
    for path in sorted((folder / 'results' / part).glob('*.csv')):
        with path.open() as file:
            rows += list(csv.DictReader(file))
    return rows


def targets(folder: Path, implementation: str) -> list[Target]:
    """All targets.

    Args:
        folder: Folder of the report.
        implementation: The implementation of BCN to judge: ``'triton'`` on a GPU.
    """
    on_gpu = implementation == 'triton'
    return [*_agreement(folder), *_layers(folder, implementation), *_bandwidth(folder, implementation),
            *_networks(folder, implementation), *_memory(folder, 'peak' if on_gpu else 'live'),
            *_training(folder), *_processes(folder)]


def _judged(name: str, limit: str, values: list[float], good: Callable[[float], bool], spec: str) -> Target:
    """A target that all values must reach. It shows how many do, and the range of the values."""
    if not values:
        return Target(name, limit, '', MISSING)
    passed = [value for value in values if good(value)]
    span = format(min(values), spec) if len(values) == 1 else f'{min(values):{spec}} to {max(values):{spec}}'
    found = span if len(values) == 1 else f'{span}; {len(passed)} of {len(values)} shapes'
    return Target(name, limit, found, PASS if len(passed) == len(values) else FAIL)


def _agreement(folder: Path) -> Iterator[Target]:
    rows = read(folder, 'agreement')
    for dtype in ('float32', 'float16', 'bfloat16'):
        own = [row for row in rows if row['dtype'] == dtype]
        bad = [row for row in own if row['passed'] != 'True']
        largest = max((float(row['error']) for row in own if not math.isnan(float(row['error']))), default=math.nan)
        found = f'{len(own) - len(bad)} of {len(own)} cases, largest error {largest:.0e}' if own else ''
        yield Target(f'kernels agree with float64, {dtype}', 'all cases', found,
                     FAIL if bad else PASS if own else MISSING)


def _layers(folder: Path, implementation: str) -> Iterator[Target]:
    for name, parts in LAYERS.items():
        rows = [row for part in parts for row in read(folder, part)]
        values = [float(row['vs_group_norm']) for row in rows if row['pass'] == 'both' and row['layer'] == OURS
                  and row['implementation'] == implementation and not row['shape'].endswith('x1x1')]
        yield _judged(f'BCN / GroupNorm, {name}', '<= 0.70', values, lambda value: value <= 0.7, '.2f')


def _bandwidth(folder: Path, implementation: str) -> Iterator[Target]:
    rows = [row for part in ('layers_graphs', 'layers_batch_2_and_4') for row in read(folder, part)
            if row['layer'] == OURS and row['implementation'] == implementation and row['shape'] == LARGE]
    for name in ('forward', 'backward'):
        values = [float(row['copy_bandwidth_share']) for row in rows if row['pass'] == name][:1]
        yield _judged(f'share of the copy bandwidth, {name}, {LARGE}', '>= 80%', values, lambda value: value >= 0.8,
                      '.0%')


def _networks(folder: Path, implementation: str) -> Iterator[Target]:
    for part in ('networks', 'networks_amp'):
        rows = read(folder, part)
        for layer in (f'{OURS}', f'{OURS}, ReLU fused'):
            values = [float(row['vs_bn']) for row in rows if row['layer'] == f'BCN+WS {layer.removeprefix("BCN ")}'
                      and row['implementation'] == implementation]
            title = f'step / BN network, {layer}' + (', bfloat16' if part.endswith('amp') else '')
            yield _judged(title, '<= 1.00', values, lambda value: value <= 1, '.2f')


def _memory(folder: Path, kind: str) -> Iterator[Target]:
    rows = read(folder, 'memory')
    for level, limit in (('light', 0.75), ('strong', 0.5)):
        values = [float(row[f'{kind}_vs_bn']) for row in rows if row['implementation'] == level]
        yield _judged(f'{kind} bytes / BN network, save_memory {level}', f'<= {limit:.2f}', values,
                      lambda value, limit=limit: value <= limit, '.2f')


def _training(folder: Path) -> Iterator[Target]:
    for part in ('training_float32', 'training_amp'):
        limit = 'finite, and smaller at the end'
        try:
            losses = [line['loss'] for line in read_scalars(folder / 'results' / part) if 'loss' in line]
        except FileNotFoundError:
            losses = []
        if len(losses) < 2:
            yield Target(f'loss of {part}', limit, '', MISSING)
            continue
        good = all(map(math.isfinite, losses)) and losses[-1] < losses[0]
        yield Target(f'loss of {part}', limit, f'{losses[0]:.3f} to {losses[-1]:.3f}', PASS if good else FAIL)


def _processes(folder: Path) -> Iterator[Target]:
    name, limit = 'gradients of two processes are those of one', '<= 1e-4'
    path = folder / 'results' / 'two_processes' / 'two_processes.json'
    if not path.is_file():
        yield Target(name, limit, '', MISSING)
        return
    result = json.loads(path.read_text())
    yield Target(name, limit, f'{result["largest_error"]:.0e}, {result["backend"]}', PASS if result['passed'] else FAIL)
