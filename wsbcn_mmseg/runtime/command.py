"""The main function that several commands in ``tools/`` share; :mod:`wsbcn.arguments` has their arguments."""
import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config

from .checkpoint import safe_loading
from .errors import UsageError
from .launch import process_group
from .whole_files import whole_files


def run_command(args: argparse.Namespace, set_up: Callable[[argparse.Namespace], Config],
                run: Callable[[Config], None]) -> None:
    """Build a config and run it in the launched processes; with ``args.check``, only build it.

    If one of the functions raises a :class:`UsageError`, the program ends with its message.
    """
    try:
        with safe_loading(), whole_files():
            cfg = set_up(args)
            if not args.check:
                with process_group(cfg):
                    run(cfg)
    except UsageError as error:
        exit_with(error)


def exit_with(error: object) -> None:
    """End the program with ``COMMAND: error`` on standard error and exit status 1."""
    sys.exit(f'{Path(sys.argv[0]).name}: {error}')
