#!/usr/bin/env python
"""Export a trained segmentor: tools/export.py CONFIG CHECKPOINT OUT --format FORMAT.

Folds Weight Standardization and BCN into plain layers, writes OUT, and compares it with the original network on random
and real images of several sizes. If they do not agree, OUT is deleted. OUT.json describes input and output.
"""
import argparse
from pathlib import Path

from wsbcn.arguments import network_parser, parse

FORMATS = ('torchscript', 'onnx', 'exported_program', 'state_dict')
TOLERANCE = 1e-3
MOST_IMAGES = 4


def parse_args() -> argparse.Namespace:
    parser = network_parser(__doc__)
    parser.add_argument('out', type=Path, help='file to write')
    parser.add_argument('--format', choices=FORMATS, required=True)
    parser.add_argument('--images', nargs='+', metavar='IMAGES',
                        help=f'files, folders or globs for the comparison (default: {MOST_IMAGES} test images)')
    parser.add_argument('--tolerance', type=float, default=TOLERANCE,
                        help='largest accepted difference of logits, relative to the largest (default: %(default)s)')
    return parse(parser)


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

from wsbcn_mmseg import load_segmentor
from wsbcn_mmseg.export import export
from wsbcn_mmseg.inference import find_images, images_of_test_set
from wsbcn_mmseg.runtime.command import exit_with
from wsbcn_mmseg.runtime.errors import UsageError


def main(args: argparse.Namespace) -> None:
    try:
        print(f'Exporting {args.checkpoint} as {args.format} to {args.out}', flush=True)
        model = load_segmentor(args.config, args.checkpoint, options=args.cfg_options)
        images = find_images(args.images) if args.images else images_of_test_set(model.cfg)[:MOST_IMAGES]
        if not images:
            raise UsageError("the config's test set is not here; give images for the comparison by --images")
        checks = export(model, args.out, args.format, images, args.tolerance)
    except (UsageError, OSError) as error:
        exit_with(error)
    for check in checks:
        print(f'{check.images} {check.kind} images: logits differ by at most {check.difference:.1e} '
              f'({check.relative:.1e} of the largest), {check.pixels:.3%} of the pixels have another class')
    print(f'Wrote {args.out} and {args.out}.json')


if __name__ == '__main__':
    main(ARGS)
