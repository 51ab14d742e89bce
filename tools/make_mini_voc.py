"""Make a small synthetic VOC 2012 and SBD release, to try the pipeline without the real ones."""
import argparse
import sys
from pathlib import Path

from wsbcn.arguments import parse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('out', type=Path, help='folder for VOCdevkit/ and benchmark_RELEASE/')
    parser.add_argument('--train', type=int, default=60, help='images of VOC train')
    parser.add_argument('--val', type=int, default=42, help='images of VOC val')
    parser.add_argument('--sbd', type=int, default=120, help='number of images that only SBD labels')
    parser.add_argument('--seed', type=int, default=0, help='same seed, same files')
    return parse(parser)


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

from wsbcn_mmseg.datasets.mini_voc import make_mini_voc


def main(args: argparse.Namespace) -> None:
    print(f'Writing {args.train + args.val + args.sbd} synthetic images (drawn, not photographs) in the layout of '
          f'VOC 2012 and SBD to {args.out}', flush=True)
    try:
        counts = make_mini_voc(args.out, args.train, args.val, args.sbd, args.seed)
    except (ValueError, OSError) as error:
        sys.exit(f'Error: {error}.')
    print(f'VOC train {counts["train"]}, VOC val {counts["val"]}, labeled by SBD {counts["sbd"]}; augmented training '
          f'set {counts["trainaug"]}. Next, run:\n'
          f'  python tools/prepare_voc_aug.py {args.out / "VOCdevkit" / "VOC2012"} '
          f'--sbd {args.out / "benchmark_RELEASE"} --expected {counts["trainaug"]}')


if __name__ == '__main__':
    main(ARGS)
