#!/usr/bin/env python
"""Convert a checkpoint that the paper's authors published: ImageNet ResNet or ResNeXt, or DeepLabV3 on VOC.

The format of SRC is recognized from its tensors and printed. MMPretrain's classifiers can load a converted
classification checkpoint, and so can segmentors through PRETRAINED=DST. tools/test.py can evaluate a converted
segmentation checkpoint with configs/deeplabv3_r101_*_voc.py.
"""
import argparse
import os
from pathlib import Path

from wsbcn.arguments import parse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', help="the authors' file")
    parser.add_argument('dst', type=Path, help='the file to write')
    parser.add_argument('--ws', action=argparse.BooleanOptionalAction,
                        help='whether the network standardizes its weights, which the file does not say '
                        '(default: as published, yes with GN and BCN, no with BN)')
    parser.add_argument('--eps', choices=('outside', 'inside'),
                        help='where the layers in training added eps to the deviation of a kernel: outside the root, '
                        'std + eps, or inside, sqrt(var + eps) (default: by the norms, inside for BCN on ImageNet, '
                        'outside for all others)')
    parser.add_argument('--keep-kernels', action='store_true',
                        help='do not change the kernels of a GN+WS network, to fine-tune it exactly as the authors '
                        "with conv_cfg=dict(type='ConvWSStdEps') (default: scale them, so that ConvWS computes the "
                        'same but trains them at other relative rates)')
    return parse(parser)


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

import torch

from wsbcn_mmseg.conversion.official import convert_official
from wsbcn_mmseg.runtime.checkpoint import read_weights
from wsbcn_mmseg.runtime.command import exit_with


def main(args: argparse.Namespace) -> None:
    try:
        state_dict, official = convert_official(read_weights(args.src), args.ws, args.eps,
                                                args.keep_kernels)
    except (FileNotFoundError, ValueError) as error:
        message = str(error)
        exit_with(message if args.src in message else f'{args.src} {message}')
    meta = dict(source=Path(args.src).name, official=str(official), dataset_meta=official.dataset_meta)
    partial = args.dst.with_name(f'{args.dst.name}.partial')
    try:
        args.dst.parent.mkdir(parents=True, exist_ok=True)
        torch.save(dict(state_dict=state_dict, meta=meta), partial)
        os.replace(partial, args.dst)
    except (OSError, RuntimeError) as error:
        exit_with(f'{args.dst} cannot be written ({str(error).splitlines()[0]})')
    finally:
        partial.unlink(missing_ok=True)
    print(f'{args.src} ({official}): wrote {len(state_dict)} tensors to {args.dst}')
    if official.norm == 'GN' and official.ws and not args.keep_kernels:
        print("Its kernels are rescaled, so that ConvWS computes the same as the authors' layer; to fine-tune it "
              'exactly as they did, see --keep-kernels')


if __name__ == '__main__':
    main(ARGS)
