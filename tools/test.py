#!/usr/bin/env python
"""Evaluate a checkpoint: tools/test.py CONFIG CHECKPOINT, or tools/dist_test.sh CONFIG CHECKPOINT GPUS."""
import argparse
from pathlib import Path

from wsbcn.arguments import add_run_arguments, network_parser, parse


def parse_args() -> argparse.Namespace:
    parser = network_parser(__doc__)
    add_run_arguments(parser)
    parser.add_argument('--out', help='folder for the predicted label maps (PNG)')
    parser.add_argument('--show-dir', help='folder for images of the predictions')
    parser.add_argument('--tta', action='store_true', help="average over scales and flips (the config's tta_pipeline)")
    return parse(parser)


if __name__ == '__main__':
    ARGS = parse_args()  # before the imports below, which take seconds

from mmengine.config import Config

from wsbcn_mmseg.runtime.command import run_command
from wsbcn_mmseg.runtime.errors import Faults, UsageError
from wsbcn_mmseg.runtime.launch import load_config
from wsbcn_mmseg.runtime.runner import ResumableRunner
from wsbcn_mmseg.runtime.start import check_testing, effort_of


def set_up(args: argparse.Namespace) -> Config:
    """Return the config to run, after checks."""
    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
    faults = Faults()
    check_testing(cfg, args.checkpoint, faults, effort_of(args.check))
    faults.raise_all()
    cfg.load_from = args.checkpoint
    cfg.model.pop('init_cfg', None)
    cfg.model.get('backbone', {}).pop('init_cfg', None)  # the checkpoint contains all weights
    if args.show_dir:
        if 'visualization' not in cfg.get('default_hooks', {}):
            raise UsageError(f'--show-dir needs a visualization hook in default_hooks, but {args.config} has none')
        cfg.default_hooks.visualization.update(draw=True, interval=1)
        cfg.visualizer.save_dir = args.show_dir
    if args.out:
        if not isinstance(cfg.test_evaluator, dict):
            raise UsageError(f'--out needs one test_evaluator, {args.config} has {len(cfg.test_evaluator)}')
        cfg.test_evaluator.output_dir = args.out
        if not args.check:  # the metric creates the folder in one process only; another may write first
            Path(args.out).mkdir(parents=True, exist_ok=True)
    if args.tta:
        if 'tta_pipeline' not in cfg:
            raise UsageError(f'{args.config} has no tta_pipeline; configs/_base_/voc_aug.py shows one')
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        cfg.model = dict(**cfg.tta_model, module=cfg.model)
    return cfg


def test(cfg: Config) -> None:
    ResumableRunner.from_cfg(cfg).test()


if __name__ == '__main__':
    run_command(ARGS, set_up, test)
