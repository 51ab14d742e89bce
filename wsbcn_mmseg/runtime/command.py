"""The main function shared by several commands in ``tools/``; their arguments are in :mod:`wsbcn.arguments`."""
import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from mmengine.config import Config

from wsbcn.torchrun import FAULT_FILE

from .checkpoint import safe_loading
from .errors import UsageError
from .launch import process_group
from .whole_files import whole_files


def run_command(args: argparse.Namespace, set_up: Callable[[argparse.Namespace], Config],
                run: Callable[[Config], None]) -> None:
    """Build a config and run it in the launched processes; with ``args.check``, only build it.

    If one of the functions raises a :class:`UsageError`, the program exits with its message.
    """
    try:
        with safe_loading(), whole_files():
            cfg = set_up(args)
            if not args.check:
                with process_group(cfg), _known_faults():
                    run(cfg)
    except UsageError as error:
        exit_with(error)


@contextmanager
def _known_faults() -> Iterator[None]:
    """Turn errors of a run that the user can fix into UsageErrors."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UsageError('the GPU does not have enough memory: use fewer or smaller images per process '
                         '(--cfg-options train_dataloader.batch_size=N), --save-memory strong, or '
                         '--amp') from error
    except Exception as error:
        chain = ' '.join(map(str, _chain(error)))
        if 'DataLoader worker' not in chain:
            raise
        why = re.search(r'killed by signal: ([\w ]+)', chain)
        raise UsageError(f'a process that loads data died{f" ({why[1].strip()})" if why else ""}, perhaps for lack of '
                         'memory: use fewer (--cfg-options train_dataloader.num_workers=N) and continue with '
                         '--resume') from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and the errors that caused it.

    torch reports a dead data loading worker from a signal handler, in the middle of whatever the main process is doing,
    and that code may raise another error.
    """
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def exit_with(error: object) -> None:
    """Exit with status 1, and print each line of the error to standard error after ``COMMAND:``."""
    text = '\n'.join(f'{Path(sys.argv[0]).name}: {line}' for line in str(error).splitlines())
    if FAULT_FILE in os.environ:
        with suppress(FileExistsError), open(os.environ[FAULT_FILE], 'x') as file:  # only the first process that fails
            file.write(text)
    sys.exit(text)
