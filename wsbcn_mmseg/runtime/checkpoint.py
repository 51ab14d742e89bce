"""Read checkpoints without executing code in them, and detect damaged ones."""
import functools
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader

from .checkpoint_file import check_file, download, foreign_code, is_url
from .errors import CheckpointError, MissingCheckpointError, first_line


def _history_method(owner, name: str):
    """Replaces ``getattr``, which a HistoryBuffer uses to pickle its statistics methods; an unrestricted ``getattr``
    would let a file execute any code."""
    if owner is not HistoryBuffer or name not in ('current', 'max', 'mean', 'min'):
        raise pickle.UnpicklingError(f'{name} of {owner} is not something that a checkpoint may hold')
    return getattr(owner, name)


_history_method.__module__, _history_method.__qualname__ = 'builtins', 'getattr'  # the name that files use

# The types that MMEngine's message hub saves in addition to weights, and no others.
_RUN_STATE = [
    HistoryBuffer, _history_method, np.ndarray, np.dtype, np.float64(0).__reduce__()[0], np.array(0).__reduce__()[0],
    *{type(np.dtype(name)) for name in ('float32', 'float64', 'int32', 'int64', 'uint64', 'bool')}
]


@contextmanager
def _run_state_allowed() -> Iterator[None]:
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(_RUN_STATE)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def read_checkpoint(path: str | Path, map_location='cpu') -> dict:
    """Read a checkpoint with ``weights_only=True``, allowing the run state that MMEngine saves.

    The file's contents are compared with its checksums first.

    Args:
        path: The file, an http(s) URL, which is downloaded once, or a path in another scheme that MMEngine knows, such
            as ``torchvision://resnet50``.
        map_location: As :func:`torch.load` takes it. Defaults to the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, is damaged, or can only be read by running code that it contains.
    """
    path = str(path)
    if is_url(path):
        path = download(path)
    elif '://' in path:
        with safe_loading():
            return CheckpointLoader.load_checkpoint(path, map_location)
    if not Path(path).exists():
        raise MissingCheckpointError(f'checkpoint {path} does not exist')
    check_file(path)
    try:
        with _run_state_allowed():
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # damaged files may raise any error
        raise _unreadable(path, 'as a checkpoint of weights; it may be damaged', error) from error
    return _checked(checkpoint, path)


def _unreadable(path: str, reason: str, error: Exception) -> CheckpointError:
    code = foreign_code(path, str(error))
    return CheckpointError(f'{path} holds more than weights: reading it would run {code}; it was not read' if code
                           else f'{path} cannot be read {reason}')


def read_meta(path: str | Path) -> dict:
    """The ``meta`` of a checkpoint, without its weights.

    Raises:
        Exception: Any error, if the file cannot be read.
    """
    with _run_state_allowed():
        return torch.load(path, map_location='meta', weights_only=True, mmap=True)['meta']


def _checked(checkpoint, path: str) -> dict:
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{path} holds a {type(checkpoint).__name__}, not a dictionary of weights')
    if isinstance(checkpoint.get('meta'), dict):
        checkpoint['meta'].pop('config', None)  # of MMCV 1; MMEngine's runner would execute it when it resumes
    return checkpoint


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict in a checkpoint file, without DataParallel's prefix ``module.``.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_checkpoint`.
    """
    return weights_in(read_checkpoint(path), path)


def weights_in(checkpoint: dict, path: str | Path) -> dict[str, torch.Tensor]:
    """Like :func:`read_weights`, for a checkpoint that was already read from ``path``."""
    state_dict = checkpoint.get('state_dict', checkpoint)
    weights = {name.removeprefix('module.'): value for name, value in state_dict.items()
               if isinstance(name, str) and isinstance(value, torch.Tensor)} if isinstance(state_dict, dict) else {}
    if not weights:
        raise CheckpointError(f'{path} holds no weights')
    return weights


@contextmanager
def safe_loading() -> Iterator[None]:
    """Within this context, ``torch.load`` never runs code from a file, and MMEngine reads checkpoints by
    :func:`read_checkpoint`.

    MMEngine's own loader either rejects the state of its own runs (upstream with torch 2.6 and later) or falls back to
    unsafe loading (OneDL). ``torch.load`` is restricted by PyTorch's own setting, which also covers calls in hooks and
    in MMEngine's loaders of other schemes.
    """
    variables = ('TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD')
    environment = {name: os.environ.pop(name, None) for name in variables}
    os.environ[variables[0]] = '1'
    loaders = dict(CheckpointLoader._schemes)
    for scheme, loader in loaders.items():
        CheckpointLoader.register_scheme(scheme, _guarded(loader), force=True)
    CheckpointLoader.register_scheme(('', 'http://', 'https://'), load_from_file, force=True)
    try:
        with _run_state_allowed():
            yield
    finally:
        for scheme, loader in loaders.items():
            CheckpointLoader.register_scheme(scheme, loader, force=True)
        os.environ.pop(variables[0])
        os.environ.update({name: value for name, value in environment.items() if value is not None})


def load_from_file(path: str, map_location='cpu') -> dict:
    """:func:`read_checkpoint` with a name like those of MMEngine's loaders."""
    return read_checkpoint(path, map_location)


def _guarded(loader: Callable) -> Callable:
    """Wrap a loader of MMEngine so that its errors become CheckpointErrors."""

    @functools.wraps(loader)
    def load(path: str, *args, **kwargs):
        try:
            return _checked(loader(path, *args, **kwargs), path)
        except CheckpointError:
            raise
        except Exception as error:  # libraries and networks may raise any error
            raise _unreadable(path, f'({first_line(error)})', error) from error

    return load
