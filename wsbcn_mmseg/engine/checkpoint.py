"""Reading checkpoints without running what may be hidden in them."""
import pickle
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

# What MMEngine's message hub stores beside the weights of a run, and nothing else.
_RUN_STATE = [
    HistoryBuffer, np.ndarray, np.dtype, np.float64(0).__reduce__()[0], np.array(0).__reduce__()[0], getattr,
    *{type(np.dtype(name)) for name in ('float32', 'float64', 'int32', 'int64', 'uint64', 'bool')}
]


@contextmanager
def run_state_allowed():
    """Within the context, ``torch.load(..., weights_only=True)`` also accepts what a run of MMEngine's saves.

    Since torch 2.6 weights-only is the default, and refuses that state: a run of one's own could not be resumed.
    """
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(_RUN_STATE)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def read_checkpoint(path: str | Path) -> dict:
    """A checkpoint file as a dictionary, on the CPU, read with ``weights_only=True``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or only by running code that it contains.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    try:
        with run_state_allowed():
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f'{path} cannot be read as a checkpoint of weights: {str(error).splitlines()[0]}') from error
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
    return {name.removeprefix('module.'): value for name, value in state_dict.items()
            if isinstance(value, torch.Tensor)}
