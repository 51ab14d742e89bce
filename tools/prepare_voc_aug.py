"""Make the augmented VOC 2012 training set: VOC train, plus SBD train and val, minus VOC val.

Writes SegmentationClassAug/*.png and ImageSets/Segmentation/trainaug.txt into the VOC2012 folder, and verifies every
image and label map of the training and validation sets. After an interruption, run it again to continue.
"""
import argparse
import os
import sys
from pathlib import Path

from wsbcn.arguments import parse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('voc_root', type=Path, help='the VOC2012 folder')
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--sbd', type=Path, metavar='BENCHMARK_RELEASE', help='folder of the SBD release')
    source.add_argument('--aug', type=Path, metavar='FOLDER', help='a ready SegmentationClassAug folder')
    parser.add_argument('--expected', type=int, default=10582, help='number of training images (default: %(default)s)')
    parser.add_argument('--workers', type=int, default=os.cpu_count(), help='processes (default: one per CPU core)')
    return parse(parser)


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

from wsbcn_mmseg.datasets.voc_aug import VOCAugError, plan_voc_aug, prepare_voc_aug


def main(args: argparse.Namespace) -> None:
    try:
        plan = plan_voc_aug(args.voc_root, args.sbd, args.aug, args.expected)
        print(f'Preparing {len(plan.train)} training images ({plan.num_voc} labeled by VOC, '
              f'{len(plan.train) - plan.num_voc} by {args.sbd or args.aug}) and verifying {len(plan.val)} validation '
              f'images in {args.voc_root}', flush=True)
        written = prepare_voc_aug(plan, max(1, args.workers))
    except (VOCAugError, OSError) as error:
        sys.exit(f'Error: {error}')
    except KeyboardInterrupt:
        sys.exit('Interrupted; run the same command again to continue.')
    print(f'All {len(plan.train)} training and {len(plan.val)} validation images are in order; {written} label maps '
          f'written, {len(plan.train) - written} kept; list in {plan.list_file}')


if __name__ == '__main__':
    main(ARGS)
