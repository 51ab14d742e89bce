"""Read a config and start processes; shared by the commands."""
import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from .errors import UsageError, first_line

# Messages of gloo and NCCL. NCCL waits for its timeout first.
_CONNECTION_LOST = re.compile(r'Connection (closed by peer|reset|refused)|Broken pipe|Timed out waiting|'
                              'remote process exited|NCCL communicator was aborted', re.I)


def load_config(path: str, options: dict | None, work_dir: str | None, launcher: str) -> Config:
    """Read a config and merge the command line into it.

    ``WORLD_SIZE`` must be set before the config is read: batch sizes and schedules depend on it.
    """
    if not Path(path).is_file():
        raise UsageError(f'config {path} does not exist')
    if launcher == 'slurm':
        os.environ.setdefault('WORLD_SIZE', os.environ.get('SLURM_NTASKS', '1'))
    cfg = _read(path)
    cfg.launcher = launcher
    try:
        cfg.merge_from_dict(options or {})
    except (TypeError, KeyError, IndexError) as error:
        raise UsageError(f'--cfg-options do not fit {path}: {first_line(error)}') from error
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs', Path(path).stem))
    return cfg


def _read(path: str) -> Config:
    cannot = f'config {path} cannot be read'
    try:
        cfg = Config.fromfile(path)
        settings = len(cfg.items())  # runs the imports of configs of the new style
    except SyntaxError as error:
        line = f'line {error.lineno}, ' if error.lineno else ''
        raise UsageError(f'config {path} is not Python: {line}{error.msg}') from error
    except KeyError as error:
        raise UsageError(f'{cannot}: {error.args[0] if error.args else error}') from error
    except ImportError as error:
        raise UsageError(f'{cannot}: {_shortened(error)}; install what it needs, or put its folder into '
                         'PYTHONPATH') from error
    except Exception as error:  # a config is a program and may raise any error
        if path.endswith(('.json', '.yaml', '.yml')) and isinstance(error, AttributeError):
            raise UsageError(f'{cannot}: it holds no settings, each with a name') from error
        kind = '' if isinstance(error, (OSError, ValueError, AssertionError)) else f'{type(error).__name__}: '
        raise UsageError(f'{cannot}: {kind}{" ".join(str(error).split())}') from error
    if not settings:
        raise UsageError(f'config {path} is empty')
    return cfg


def _shortened(error: ImportError) -> str:
    """An error of MMEngine without the list of searched folders."""
    return ' '.join(str(error).split()).partition(', the current sys.path')[0]


@contextmanager
def process_group(cfg: Config) -> Iterator[None]:
    """Create the process group of ``cfg.launcher`` before a run and, if the run succeeds, destroy it afterwards.

    After an error the group is not destroyed: the other processes may be waiting for this one, and all would hang.

    Raises:
        UsageError: If the connection to another process is lost.
    """
    start_processes(cfg)
    try:
        yield
    except RuntimeError as error:
        if not _CONNECTION_LOST.search(str(error)):
            raise
        raise UsageError('another process of the training ended or cannot be reached any more '
                         f'({first_line(error)}); saved checkpoints are intact: start all processes again, with '
                         '--resume') from error
    end_processes()


def start_processes(cfg: Config) -> None:
    """Without a GPU, connect the processes of torchrun over gloo; MMEngine's own initialization needs CUDA."""
    if cfg.launcher != 'pytorch' or torch.cuda.is_available():
        return
    torch.distributed.init_process_group('gloo')
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False,
                   find_unused_parameters=cfg.get('find_unused_parameters', False))
    wrapper.update(cfg.get('model_wrapper_cfg') or {})
    cfg.model_wrapper_cfg = wrapper
    if torch.distributed.get_rank() == 0:
        print_log(f'No GPU here: {torch.distributed.get_world_size()} processes on the CPU, over gloo')


def end_processes() -> None:
    """Destroy the process group and join its threads while Python still runs.

    If a thread of gloo releases its last tensor while the interpreter shuts down, the process aborts ("terminate called
    without an active exception") and a successful run fails. The threads are joined when the last reference to the
    group is deleted. The model's DDP wrapper has one, inside the reference cycles of a runner, so garbage is collected
    first.
    """
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()
