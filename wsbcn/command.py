"""The command ``wsbcn``: every subcommand runs a file of ``tools/``, in the checkout or in the installed wheel."""
import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

from .shipped import config_names, home

TOOLS = {  # subcommand: (file in tools/, description)
    'train': ('train.py', 'train a network; --gpus N starts N processes'),
    'test': ('test.py', 'evaluate a checkpoint; --gpus N starts N processes'),
    'infer': ('infer.py', 'segment your own images'),
    'export': ('export.py', 'write a trained network as ONNX, TorchScript, exported program or plain weights'),
    'convert': ('convert_official_checkpoint.py', "convert a checkpoint of the paper's authors"),
    'demo': ('demo.py', 'train a small network on synthetic images or photographs'),
    'check': ('check_installation.py', 'show what is installed, whether it works, and what is missing'),
    'plot': ('plot_run.py', 'plot loss, learning rate and mIoU of trainings'),
    'prepare-voc': ('prepare_voc_aug.py', 'make the augmented training set of PASCAL VOC 2012'),
    'mini-voc': ('make_mini_voc.py', 'make a small synthetic PASCAL VOC'),
    'benchmark': ('benchmark.py', 'measure time and memory on this machine'),
}
CONFIGS = 'configs', 'list the configs that train, test, infer and export accept by name'
DISTRIBUTED = ('train', 'test')


def overview() -> str:
    lines = [f'  {name:<12} {text}' for name, (_, text) in TOOLS.items()]
    return '\n'.join([
        'usage: wsbcn COMMAND [arguments]', '',
        'Train networks with Batch-Channel Normalization and Weight Standardization.', '', 'commands:', *lines,
        f'  {CONFIGS[0]:<12} {CONFIGS[1]}', '',
        'wsbcn COMMAND --help explains the arguments of a command, wsbcn --version prints the version.',
        f'The commands are files in {home() / "tools"}.'])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a subcommand.

    Args:
        arguments: The subcommand and its arguments. Defaults to the command line.
    """
    name, *arguments = list(sys.argv[1:] if arguments is None else arguments) or ['--help']
    if name in ('-h', '--help', 'help'):
        print(overview())
    elif name == '--version':
        print(version())
    elif name == CONFIGS[0]:
        list_configs(arguments)
    elif name in TOOLS:
        run(name, arguments)
    else:
        close = difflib.get_close_matches(name, [*TOOLS, CONFIGS[0]], n=1)
        advice = f'did you mean {close[0]}?' if close else 'wsbcn --help lists the commands'
        print(f'wsbcn: there is no command {name}; {advice}', file=sys.stderr)
        sys.exit(2)


def version() -> str:
    """The version of the package, without importing it."""
    return re.search(r"__version__ = '(.+)'", Path(find_spec('wsbcn_mmseg').origin).read_text())[1]


def list_configs(arguments: Sequence[str]) -> None:
    """Print the names of the configs, each with the comment in its first line."""
    parser = argparse.ArgumentParser(prog='wsbcn configs', description=f'{CONFIGS[1].capitalize()}.')
    parser.add_argument('part', nargs='?', default='', help='only names that contain this')
    part = parser.parse_args(arguments).part
    for name in (name for name in config_names() if part in name):
        comment = (home() / 'configs' / f'{name}.py').read_text().partition('\n')[0]
        print(f'{name}\n    {comment.lstrip("# ")}')


def run(name: str, arguments: list[str]) -> None:
    """Run the tool of a subcommand in this process or, with ``--gpus``, in several, like ``tools/dist_*.sh``."""
    tool = home() / 'tools' / TOOLS[name][0]
    processes, arguments = number_of_processes(name, arguments)
    if processes is None:
        run_here(tool, [f'wsbcn {name}', *arguments])
        return
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])  # the script starts `python`
    os.execvpe('bash', ['bash', str(tool.with_name('torchrun.sh')), tool.name, str(processes), *arguments],
               {**os.environ, 'PATH': path})


def run_here(file: Path, argv: list[str]) -> None:
    """Run a file as the main module, like ``runpy.run_path``, but without changing the name in ``sys.argv``."""
    sys.argv = argv
    spec = spec_from_file_location('__main__', file)
    sys.modules['__main__'] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules['__main__'])


def number_of_processes(name: str, arguments: list[str]) -> tuple[int | None, list[str]]:
    """The value of ``--gpus`` (or ``--nproc``), and the other arguments."""
    if name not in DISTRIBUTED:
        return None, arguments
    parser = argparse.ArgumentParser(prog=f'wsbcn {name}', add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    parser.add_argument('--gpus', '--nproc', type=_positive, dest='processes')
    args, others = parser.parse_known_args(arguments)
    return args.processes, others


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a number of processes')
    return int(text)
