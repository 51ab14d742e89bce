#!/usr/bin/env python
"""Print what is installed, whether BCN and WS agree with float64 on every device, and what each feature needs.

The exit status is 1 if an installed package does not work, or if there is no GPU for --gpu, otherwise 0.
"""
import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from wsbcn.installation import Line, devices, feature_lines, gpu_kernels, installed_versions, no_gpu


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--gpu', action='store_true', help='only check the Triton kernels, on every GPU in every dtype '
                        'against float64')
    return parser.parse_args()


def show(title: str, lines: Iterable[Line]) -> bool:
    """Print each line when it is ready; return whether one of them is broken."""
    print(title, flush=True)
    broken = False
    for line in lines:
        print(f'  {line.name:<40} {line.text}', flush=True)
        broken |= line.broken
    return broken


def main() -> None:
    args = parse_args()
    if args.gpu and (reason := no_gpu()):
        sys.exit(f'{Path(sys.argv[0]).name}: {reason}')
    show('Versions', installed_versions())
    try:
        import wsbcn_mmseg  # noqa: F401
    except Exception as error:  # torch, OpenMMLab and their imports may raise any error
        sys.exit(f'wsbcn_mmseg cannot be imported: {type(error).__name__}: {error}')
    if args.gpu:
        broken = show('Kernels', gpu_kernels())
    else:
        broken = show('Devices', devices())
        broken |= show('Features', feature_lines())
    if broken:
        sys.exit('Something that is installed does not work; see above.')


if __name__ == '__main__':
    main()
