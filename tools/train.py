#!/usr/bin/env python
"""Train a network: tools/train.py CONFIG, or tools/dist_train.sh CONFIG GPUS on several GPUs."""
import argparse
import os
import sys
import warnings

from wsbcn.arguments import add_run_arguments, network_parser, parse


def parse_args() -> argparse.Namespace:
    parser = network_parser(__doc__, checkpoint=False)
    add_run_arguments(parser)
    resuming = parser.add_mutually_exclusive_group()
    resuming.add_argument('--resume', action='store_true',
                          help='continue from the newest intact checkpoint in the work folder')
    resuming.add_argument('--auto-resume', action='store_true',
                          help='like --resume, but train from the start if there is no checkpoint yet')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--save-memory', nargs='?', const='light', choices=['light', 'strong'], help='blocks recompute '
                        'cheap activations in the backward pass; strong saves more but takes more time (default if '
                        'given without a level: light)')
    conversion = parser.add_argument_group('other norms in any config', 'For tools/test.py, use the config that is '
                                           'written to the work folder.')
    conversion.add_argument('--bcn-ws', action='store_true', help='BCN for every BN, SyncBN and GN, and Weight '
                            'Standardization before it; same as --norm BCN --ws')
    conversion.add_argument('--norm', metavar='NAME', help='replace every BN, SyncBN and GN by this norm')
    conversion.add_argument('--ws', action='store_true', help='use Weight Standardization before every norm')
    conversion.add_argument('--include', nargs='+', metavar='LAYERS', default=[],
                            help='convert these layers only, such as decode_head or "*.conv1"')
    conversion.add_argument('--exclude', nargs='+', metavar='LAYERS', default=[], help='do not convert these layers')
    conversion.add_argument('--preserve', action='store_true', help='for weights that were trained without Weight '
                            'Standardization: change the outputs of the network as little as possible')
    return parse(parser)


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

import torch
from mmengine.config import Config

from wsbcn_mmseg import apply_bcn_ws
from wsbcn_mmseg.conversion import ConversionError
from wsbcn_mmseg.runtime.checks import check_batch
from wsbcn_mmseg.runtime.command import run_command
from wsbcn_mmseg.runtime.errors import Faults, UsageError
from wsbcn_mmseg.runtime.launch import load_config
from wsbcn_mmseg.runtime.resume import resume
from wsbcn_mmseg.runtime.runner import ResumableRunner
from wsbcn_mmseg.runtime.start import check_training, effort_of


def convert(cfg: Config, args: argparse.Namespace) -> None:
    """Replace norms and convolutions according to the command line; one process prints the changes."""
    norm, ws = args.norm or ('BCN' if args.bcn_ws else None), args.ws or args.bcn_ws
    if not norm and not ws:
        if args.include or args.exclude or args.preserve:
            raise UsageError('--include, --exclude and --preserve need one of --bcn-ws, --norm and --ws')
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        try:
            lines = []
            apply_bcn_ws(cfg, norm, ws, args.include, args.exclude, args.preserve, log=lines.append)
        except ValueError as error:
            raise UsageError(f'{args.config}: {error}') from error
    say(args, [f'Changes to {args.config}:', *(f'  {line}' for line in lines)],
        [f'Warning: {warning.message}' for warning in caught])


def say(args: argparse.Namespace, lines: list[str], warned: list[str] = ()) -> None:
    """Print lines in one process only, and not in the check of dist_train.sh before the run."""
    checked_before_start = args.check and 'LOCAL_WORLD_SIZE' in os.environ
    if lines and int(os.environ.get('RANK', 0)) == 0 and not checked_before_start:
        print('\n'.join(lines), flush=True)
        if warned:
            print('\n'.join(warned), file=sys.stderr)


def set_up(args: argparse.Namespace) -> Config:
    """Return the config to run, after checks."""
    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
    convert(cfg, args)
    faults = Faults()
    with faults:
        check_batch(cfg, args.cfg_options)
    cfg.resume = False
    if args.resume or args.auto_resume:
        with faults:
            say(args, resume(cfg, start_if_none=args.auto_resume))
    if args.amp:
        if not torch.cuda.is_available():
            faults.add('--amp needs a GPU')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.save_memory:
        others = [hook for hook in cfg.get('custom_hooks') or [] if hook.get('type') != 'SaveMemoryHook']
        cfg.custom_hooks = [*others, dict(type='SaveMemoryHook', level=args.save_memory)]
    remarks = check_training(cfg, faults, effort_of(args.check))
    faults.raise_all()
    say(args, remarks + (['No faults found'] if args.check else []))
    return cfg


def train(cfg: Config) -> None:
    """Build the runner and run it. No reference to the runner may remain when the process group is destroyed."""
    try:
        runner = ResumableRunner.from_cfg(cfg)
    except ConversionError as error:
        raise UsageError(str(error)) from error
    runner.train()


if __name__ == '__main__':
    run_command(ARGS, set_up, train)
