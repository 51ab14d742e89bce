#!/usr/bin/env python
"""Measure BCN and Weight Standardization, compared with BN, GN and plain PyTorch; see docs/benchmarks/README.md."""
import argparse
from pathlib import Path

from wsbcn.arguments import parse

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ('layers', 'networks', 'memory', 'watching', 'accumulation', 'deployment')
NAMES = (*MEASURED, 'kernels', 'traffic')  # nothing is timed by the last two


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a positive whole number')
    return int(text)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('benchmarks', nargs='*', metavar='BENCHMARK', default=list(MEASURED),
                        help=f'benchmarks to run, out of {", ".join(NAMES)}')
    parser.add_argument('--device', choices=['cpu', 'cuda'], help='device to measure on; None: the GPU if there is one')
    parser.add_argument('--dtype', choices=['float32', 'bfloat16', 'float16'], default='float32',
                        help="dtype of the layers' inputs")
    parser.add_argument('--channels-last', action='store_true', help='activations and kernels in channels-last format')
    parser.add_argument('--cuda-graphs', action='store_true', help='replay layers from CUDA graphs')
    parser.add_argument('--amp', action='store_true', help='run networks under autocast to bfloat16')
    parser.add_argument('--crop', type=positive, help='side of the images of networks; None: 257 on CPU, 513 on CUDA')
    parser.add_argument('--batch', type=positive, nargs='+',
                        help='batch sizes; None: 1, 2 and 4 for layers, 2 for networks')
    parser.add_argument('--depth', type=int, choices=[50, 101], nargs='+', default=[50, 101], help='ResNet depths')
    parser.add_argument('--repeats', type=positive, help='measured rounds; None: by benchmark and device')
    parser.add_argument('--threads', type=positive, help='number of CPU threads of PyTorch; None: all')
    parser.add_argument('--quick', action='store_true', help='measure few shapes and rounds, and a small ResNet-50')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs' / 'benchmarks', help='folder for CSV and PNG files')
    args = parse(parser)
    unknown = [name for name in args.benchmarks if name not in NAMES]
    if unknown:
        parser.error(f'no benchmark is called {unknown[0]}; choose from {", ".join(NAMES)}')
    return args


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

import torch
from rich.console import Console

from wsbcn_mmseg.benchmarks import BENCHMARKS, Options, results_table, write_results
from wsbcn_mmseg.runtime.command import exit_with
from wsbcn_mmseg.runtime.errors import UsageError


def main(args: argparse.Namespace) -> None:
    args.device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if args.device == 'cuda' and not torch.cuda.is_available():
        exit_with('PyTorch sees no GPU here; choose --device cpu')
    if args.cuda_graphs and args.device == 'cpu':
        exit_with('--cuda-graphs needs --device cuda')
    torch.set_num_threads(args.threads or torch.get_num_threads())
    crop = args.crop or (65 if args.quick else 257 if args.device == 'cpu' else 513)
    options = Options(args.device, getattr(torch, args.dtype), args.channels_last, args.cuda_graphs, args.amp,
                      args.quick, args.repeats, crop, args.batch or (2, ), args.batch or (1, 2, 4),
                      [50] if args.quick else args.depth, ROOT / 'configs')
    console = Console()
    console = console if console.is_terminal else Console(width=150)
    for name in args.benchmarks:
        where = '' if BENCHMARKS[name].computed else f' on {args.device}, {torch.get_num_threads()} threads'
        console.print(f'{name.capitalize()}{where}, into {args.out}')
        try:
            rows = BENCHMARKS[name].run(options)
            paths = write_results(name, rows, options, args.out)
        except UsageError as error:
            exit_with(error)
        except torch.cuda.OutOfMemoryError:
            exit_with(f'{name} do not fit into the GPU; choose a smaller --crop or --batch')
        console.print(results_table(name.capitalize(), BENCHMARKS[name].summary(rows), BENCHMARKS[name].columns))
        console.print(f'Wrote {paths[0]} and {paths[1].name}')


if __name__ == '__main__':
    main(ARGS)
