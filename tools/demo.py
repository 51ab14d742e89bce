#!/usr/bin/env python
"""Train a small DeepLabV3 with BCN and WS on synthetic images, in minutes on two CPU cores, and evaluate it.

The images are drawn shapes in the layout of PASCAL VOC, written to DATA. mIoU, predictions and curves are written to
OUT. tools/demo.sh installs everything first.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from wsbcn.arguments import parse
from wsbcn.shipped import find_config

TOOLS = Path(__file__).resolve().parent
OF_REAL_TRAININGS = ('PRETRAINED', 'WSBCN_IMPL', 'NNODES', 'NODE_RANK', 'WORLD_SIZE', 'PORT')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=Path('data/mini_voc'),
                        help='folder for the images (default: %(default)s)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/demo'),
                        help='folder for the results; an earlier one is replaced (default: %(default)s)')
    parser.add_argument('--gpus', type=int, help='processes, one per GPU (default: two, on the CPU if there is no GPU)')
    return parse(parser)


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


def scores(log: str) -> str:
    """The table of classes and the line of means that ``tools/test.py`` printed."""
    return '\n'.join([*re.findall(r'^[+|].*$', log, re.M), *re.findall(r'aAcc.*mAcc: *[0-9.]*', log), ''])


def main(args: argparse.Namespace) -> None:
    start, out, config = time.monotonic(), args.out, find_config('demo_mini_voc')
    processes = args.gpus or min(device_count(), 2) or 2
    for name in OF_REAL_TRAININGS:
        os.environ.pop(name, None)
    os.environ['PATH'] = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    os.environ['VOC_ROOT'] = voc_root = str(args.data / 'VOCdevkit' / 'VOC2012')
    print('The data of this demo is synthetic (drawn shapes in the layout of VOC). Its mIoU shows that the network '
          'learns; it\nis not comparable with mIoU on PASCAL VOC.', flush=True)
    run('make_mini_voc.py', args.data)
    run('prepare_voc_aug.py', voc_root, '--sbd', args.data / 'benchmark_RELEASE', '--expected', 180)
    shutil.rmtree(out, ignore_errors=True)
    run('dist_train.sh', config, processes, '--work-dir', out)
    checkpoint = out / Path((out / 'last_checkpoint').read_text().strip()).name
    run('dist_test.sh', config, checkpoint, processes, '--work-dir', out / 'test', '--out', out / 'predictions',
        log=out / 'test.log')
    miou = scores((out / 'test.log').read_text())
    (out / 'miou.txt').write_text(miou)
    run('plot_run.py', out, '--predictions', out / 'predictions', '--voc-root', voc_root)
    seconds = int(time.monotonic() - start)
    print(f'\nSynthetic held-out images: {miou.splitlines()[-1]} (all background would be mIoU 4)\n'
          f'{out}/: miou.txt, predictions.png, curves.png. Took {seconds // 60} min {seconds % 60} s.')


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

from torch.cuda import device_count

if __name__ == '__main__':
    main(ARGS)
