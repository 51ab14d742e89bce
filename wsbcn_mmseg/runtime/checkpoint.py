"""Read checkpoints without executing code that they may contain."""
import pickle
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader, load_from_local


def _history_method(owner, name: str):
    """Replaces ``getattr``, which a HistoryBuffer uses to pickle its statistics methods; an unrestricted ``getattr``
    would let a file execute any code."""
    if owner is not HistoryBuffer or name not in ('current', 'max', 'mean', 'min'):
        raise pickle.UnpicklingError(f'{name} of {owner} is not among the things a checkpoint may hold')
    return getattr(owner, name)


_history_method.__module__, _history_method.__qualname__ = 'builtins', 'getattr'  # its name in files

# The types that MMEngine's message hub saves in addition to weights, and no others.
_RUN_STATE = [
    HistoryBuffer, _history_method, np.ndarray, np.dtype, np.float64(0).__reduce__()[0], np.array(0).__reduce__()[0],
    *{type(np.dtype(name)) for name in ('float32', 'float64', 'int32', 'int64', 'uint64', 'bool')}
]


@contextmanager
def _run_state_allowed():
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(_RUN_STATE)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def read_checkpoint(path: str | Path, map_location='cpu') -> dict:
    """Read a checkpoint with ``weights_only=True``; the run state that MMEngine saves is accepted.

    Args:
        path: The file.
        map_location: As :func:`torch.load` takes it. Defaults to the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or only by running code that it contains.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    try:
        with _run_state_allowed():
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # files of any content raise errors of any kind
        reason = 'it holds more than weights' if 'Unsupported' in str(error) or 'may hold' in str(error) else 'damaged?'
        raise ValueError(f'{path} cannot be read as a checkpoint of weights ({reason})') from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} holds a {type(checkpoint).__name__}, not a dictionary of weights')
    return checkpoint


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict in a checkpoint file, without the ``module.`` that DataParallel puts before names.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_checkpoint`.
    """
    checkpoint = read_checkpoint(path)
    state_dict = checkpoint.get('state_dict', checkpoint)
    weights = {name.removeprefix('module.'): value for name, value in state_dict.items()
               if isinstance(name, str) and isinstance(value, torch.Tensor)} if isinstance(state_dict, dict) else {}
    if not weights:
        raise ValueError(f'{path} holds no weights')
    return weights


@contextmanager
def safe_loading():
    """Within this context, MMEngine's runner reads checkpoint files by :func:`read_checkpoint`.

    Its own loader either refuses the state of its own runs (upstream with torch 2.6 and later) or falls back to unsafe
    loading (OneDL).
    """
    CheckpointLoader.register_scheme('', read_checkpoint, force=True)
    try:
        yield
    finally:
        CheckpointLoader.register_scheme('', load_from_local, force=True)
