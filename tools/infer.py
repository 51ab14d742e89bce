#!/usr/bin/env python
"""Segment your own images: tools/infer.py CONFIG CHECKPOINT IMAGES... --out DIR.

Writes DIR/labels/NAME.png (class numbers, in VOC's palette), DIR/masks/NAME.png (colors and a legend) and
DIR/overlays/NAME.png. A file that cannot be segmented is reported and skipped.
"""
import argparse
import sys
from pathlib import Path

from wsbcn.arguments import network_parser, parse

MODES = ('whole', 'slide')


def parse_args() -> argparse.Namespace:
    parser = network_parser(__doc__)
    parser.add_argument('images', nargs='+', metavar='IMAGES', help='files, folders (including subfolders) and globs')
    parser.add_argument('--out', type=Path, required=True, help='folder for the results')
    parser.add_argument('--device', help='device to run on (default: the GPU if there is one)')
    parser.add_argument('--tta', action='store_true', help="average over scales and flips (the config's tta_pipeline)")
    parser.add_argument('--mode', choices=MODES,
                        help='whole images or a sliding window (default: as in the config)')
    parser.add_argument('--batch', type=int, default=1, metavar='N', help='images of equal size per forward pass')
    parser.add_argument('--opacity', type=float, default=0.5, help='opacity of overlay colors (default: %(default)s)')
    return parse(parser)


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

import torch

from wsbcn_mmseg import fold, infer, load_segmentor
from wsbcn_mmseg.inference import find_images
from wsbcn_mmseg.runtime.command import exit_with
from wsbcn_mmseg.runtime.errors import UsageError


def main(args: argparse.Namespace) -> None:
    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        images = find_images(args.images)
        print(f'Segmenting {len(images)} files on {device}, into {args.out}', flush=True)
        model = fold(load_segmentor(args.config, args.checkpoint, device, args.cfg_options))
        predictions = infer(model, images, args.out, tta=args.tta, mode=args.mode, batch=args.batch,
                            opacity=args.opacity)
    except (UsageError, OSError) as error:
        exit_with(error)
    problems = [prediction.problem for prediction in predictions if prediction.problem]
    for problem in problems:
        print(f'infer.py: {problem}', file=sys.stderr)
    print(f'{len(predictions) - len(problems)} of {len(predictions)} segmented: labels, masks and overlays in '
          f'{args.out}')
    if len(problems) == len(predictions):
        sys.exit(1)


if __name__ == '__main__':
    main(ARGS)
