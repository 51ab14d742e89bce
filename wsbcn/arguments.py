"""Arguments shared by several commands in ``tools/``.

Tools parse their arguments before they import torch and OpenMMLab, which takes seconds.
"""
import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from .shipped import find_config

_OPENMMLAB = ('mmengine', 'mmcv', 'mmseg')


class CfgOptions(argparse.Action):
    """MMEngine's ``DictAction``, imported when an argument is given."""

    def __call__(self, parser, namespace, values, option_string=None):
        require_openmmlab()
        from mmengine.config import DictAction
        DictAction(self.option_strings, self.dest, nargs=self.nargs)(parser, namespace, values, option_string)


def config_file(text: str) -> str:
    """The argument type for a config, given by path or name. If there is no such config, the program exits with a
    message."""
    try:
        return str(find_config(text))
    except FileNotFoundError as error:
        sys.exit(f'{Path(sys.argv[0]).name}: {error}')


def network_parser(description: str, checkpoint: bool = True) -> argparse.ArgumentParser:
    """A parser for ``config``, ``checkpoint`` and ``--cfg-options``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=config_file, help='config file, or the name of a shipped config')
    if checkpoint:
        parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions, metavar='KEY=VALUE',
                        help='settings that override the config, such as train_cfg.max_iters=100')
    return parser


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--work-dir`` and the arguments of ``tools/torchrun.sh``: ``--launcher``, ``--check``, ``--local_rank``."""
    parser.add_argument('--work-dir', help='folder for logs and results (default: work_dirs/CONFIG_NAME)')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='how the processes were started; tools/dist_*.sh and slurm_*.sh set it')
    parser.add_argument('--check', action='store_true', help='check config, data and files, and exit')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.epilog = 'Several processes: tools/dist_*.sh, or the command wsbcn with --gpus N.'


def method(text: str) -> str:
    """The argument type for a method of :mod:`wsbcn_mmseg.experiments.method`."""
    require_openmmlab()
    from wsbcn_mmseg.experiments.method import methods
    if text not in methods():
        raise argparse.ArgumentTypeError(f'there is no method {text!r}; there are {", ".join(map(repr, methods()))}')
    return text


def comparison_parser(description: str, out: Path, seeds: int, default: tuple[str, ...],
                      choices: tuple[str, ...] | None = None) -> argparse.ArgumentParser:
    """A parser for ``--out``, ``--seeds``, ``--jobs``, ``--methods``, ``--reuse`` and ``--quick``.

    Args:
        description: Description of the command.
        out: Default of ``--out``.
        seeds: Default of ``--seeds``.
        default: Default of ``--methods``.
        choices: Allowed values of ``--methods``. Defaults to None: all methods of
            :mod:`wsbcn_mmseg.experiments.method`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--out', type=Path, default=out, help='folder for logs, table and plot')
    parser.add_argument('--seeds', type=positive, default=seeds, help='number of seeds per setting')
    parser.add_argument('--jobs', type=positive, default=2, help='trainings to run in parallel, with one thread each')
    parser.add_argument('--methods', nargs='+', type=str if choices else method, choices=choices, default=default,
                        metavar='METHOD', help='rows of the table'
                        + ('' if choices else ', any of those in wsbcn_mmseg/experiments/method.py'))
    parser.add_argument('--reuse', type=results_file, help='a results.jsonl of finished trainings to reuse')
    parser.add_argument('--quick', action='store_true', help='one seed and very few updates, to try the command')
    return parser


def results_file(text: str) -> Path:
    """The argument type for a ``results.jsonl`` of a comparison."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f'{text} {"is not a file" if path.exists() else "does not exist"}')
    if '"settings"' not in path.read_text(errors='replace'):
        raise argparse.ArgumentTypeError(f'{text} has no results of trainings; give the results.jsonl of a '
                                         'comparison')
    return path


def positive(text: str) -> int:
    """The argument type for a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a whole number of at least 1')
    return int(text)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the arguments of a command that needs OpenMMLab. If it is not installed, the program exits with a message
    and status 2. A method that is given twice counts once, and ``--quick`` means one seed."""
    args = parser.parse_args()
    if 'methods' in args:
        args.methods = list(dict.fromkeys(args.methods))
        args.seeds = 1 if args.quick else args.seeds
    require_openmmlab()
    return args


def require_openmmlab() -> None:
    """Exit with a message and status 2 if OpenMMLab is not installed."""
    if all(map(find_spec, _OPENMMLAB)):
        return
    from wsbcn_mmseg.runtime.stack import missing_openmmlab
    print(f'{Path(sys.argv[0]).name}: this command needs {missing_openmmlab()}', file=sys.stderr)
    sys.exit(2)
