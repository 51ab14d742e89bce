"""Arguments that several commands in ``tools/`` share.

Tools parse their arguments before they import what takes seconds, torch and OpenMMLab.
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
    """The type of an argument that is a config, by path or name. If there is no such config, the program ends with a
    sentence."""
    try:
        return str(find_config(text))
    except FileNotFoundError as error:
        sys.exit(f'{Path(sys.argv[0]).name}: {error}')


def network_parser(description: str, checkpoint: bool = True) -> argparse.ArgumentParser:
    """A parser of ``config``, ``checkpoint`` and ``--cfg-options``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=config_file, help='config file, or the name of one that is shipped')
    if checkpoint:
        parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions, metavar='KEY=VALUE',
                        help='settings that replace those of the config, such as train_cfg.max_iters=100')
    return parser


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--work-dir`` and the arguments of ``tools/torchrun.sh``: ``--launcher``, ``--check``, ``--local_rank``."""
    parser.add_argument('--work-dir', help='folder for logs and results (default: work_dirs/CONFIG_NAME)')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='how the processes were started; tools/dist_*.sh and slurm_*.sh set it')
    parser.add_argument('--check', action='store_true', help='check the set-up and stop')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.epilog = 'Several processes: tools/dist_*.sh, or the command wsbcn with --gpus N.'


def method(text: str) -> str:
    """The type of an argument that is a row of the table of methods, :mod:`wsbcn_mmseg.experiments.method`."""
    require_openmmlab()
    from wsbcn_mmseg.experiments.method import methods
    if text not in methods():
        raise argparse.ArgumentTypeError(f'there is no method {text!r}; there are {", ".join(map(repr, methods()))}')
    return text


def comparison_parser(description: str, out: Path, seeds: int, default: tuple[str, ...],
                      choices: tuple[str, ...] | None = None) -> argparse.ArgumentParser:
    """A parser of ``--out``, ``--seeds``, ``--jobs``, ``--methods`` and ``--reuse``.

    Args:
        description: What the command does.
        out: Default of ``--out``.
        seeds: Default of ``--seeds``.
        default: Default of ``--methods``.
        choices: What ``--methods`` accepts. Defaults to None: every row of :mod:`wsbcn_mmseg.experiments.method`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--out', type=Path, default=out, help='folder of logs, table and plot')
    parser.add_argument('--seeds', type=_positive, default=seeds, help='trainings of each kind')
    parser.add_argument('--jobs', type=_positive, default=2, help='trainings at a time, one thread each')
    parser.add_argument('--methods', nargs='+', type=str if choices else method, choices=choices, default=default,
                        metavar='METHOD', help='rows of the table'
                        + ('' if choices else ', any of those in wsbcn_mmseg/experiments/method.py'))
    parser.add_argument('--reuse', type=Path, help='a results.jsonl of finished trainings to take over')
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the arguments of a command that needs OpenMMLab; if it is not installed, the program ends with a sentence
    and exit status 2. A method that is given twice counts once."""
    args = parser.parse_args()
    if 'methods' in args:
        args.methods = list(dict.fromkeys(args.methods))
    require_openmmlab()
    return args


def require_openmmlab() -> None:
    """End the program with a sentence and exit status 2 if OpenMMLab is not installed."""
    if all(map(find_spec, _OPENMMLAB)):
        return
    from wsbcn_mmseg.runtime.stack import missing_openmmlab
    print(f'{Path(sys.argv[0]).name}: this command needs {missing_openmmlab()}', file=sys.stderr)
    sys.exit(2)
