"""A part of the report: compare the Triton kernels with float64 in all dtypes, one table row per case.

``python -m wsbcn_mmseg.benchmarks.gpu.agreement --device cuda --out FOLDER``; on a CPU with ``TRITON_INTERPRET=1``.
"""
import argparse
import itertools
import sys
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

from wsbcn_mmseg.diagnostics.agreement import CASES, MANY_CASES, TOLERANCES, Case, agreement, tail
from wsbcn_mmseg.plotting import COLORS, MARKERS
from wsbcn_mmseg.runtime.records import write_csv

FEW = ('large-batch, channels-last', 'frozen estimates', 'transposed', 'large-batch with ReLU')  # the smallest


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', default='cuda', help='cuda, or cpu in the interpreter')
    parser.add_argument('--out', type=Path, required=True, help='folder of agreement.csv and agreement.png')
    parser.add_argument('--few', action='store_true', help='small cases only')
    parser.add_argument('--seconds', type=float, default=float('inf'), help='leave the rest after so many')
    return parser.parse_args()


def draw(rows: list[dict]) -> Figure:
    """Draw the largest error of every case, relative to its tolerance."""
    figure = Figure(figsize=(7, 1.5 + 0.25 * len({row['case'] for row in rows})), layout='constrained')
    axes = figure.subplots()
    for dtype, color, marker in zip(dict.fromkeys(row['dtype'] for row in rows), COLORS, MARKERS, strict=False):
        own = [row for row in rows if row['dtype'] == dtype and row['tolerance']]
        axes.plot([row['error'] / row['tolerance'] for row in own], [row['case'] for row in own], marker, color=color,
                  label=dtype)
    axes.axvline(1, color='black')
    axes.set(xscale='log', xlabel='largest error / what is allowed')
    axes.grid(axis='x', alpha=0.3)
    axes.invert_yaxis()
    figure.legend(loc='outside upper center', ncols=len(TOLERANCES), frameon=False)
    return figure


def row_of(case: Case, device: str, dtype: torch.dtype) -> dict:
    """Run a case, and print the result."""
    start, name, reason = time.monotonic(), str(dtype).removeprefix('torch.'), ''
    try:
        quantity, error, tolerance = agreement(case, device, dtype, 'triton')[2:]
    except Exception as raised:  # drivers, compilers and kernels may raise any error
        print(tail(raised), flush=True)
        quantity, error, tolerance, reason = '', float('nan'), 0.0, tail(raised).splitlines()[0]
    passed = error <= tolerance
    print(f'{name}, {case.name}: {"agrees" if passed else "FAILS"} ({quantity} {error:.1e}) {reason}', flush=True)
    return {'case': case.name, 'dtype': name, 'quantity': quantity, 'error': error, 'tolerance': tolerance,
            'passed': passed, 'reason': reason, 'seconds': time.monotonic() - start}


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows, end = [], time.monotonic() + args.seconds
    cases = [case for case in CASES if case.name in FEW] if args.few else MANY_CASES
    for case, dtype in itertools.product(cases, TOLERANCES):
        if time.monotonic() > end:
            print(f'{len(cases) * len(TOLERANCES) - len(rows)} cases are left out after {args.seconds:.0f} s')
            break
        rows.append(row_of(case, args.device, dtype))
        write_csv(rows, args.out / 'agreement.csv')
    draw(rows).savefig(args.out / 'agreement.png', dpi=120)
    failed = [row for row in rows if not row['passed']]
    if failed:
        sys.exit(f'{len(failed)} of {len(rows)} cases fail, the first of them {failed[0]["dtype"]}, '
                 f'{failed[0]["case"]}: {failed[0]["reason"] or failed[0]["quantity"]}')
    torch.zeros(1, device=args.device).item()  # kernel errors that are reported late


if __name__ == '__main__':
    main()
