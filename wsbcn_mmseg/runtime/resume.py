"""Find the checkpoint from which a training resumes."""
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config

from .checkpoint import read_checkpoint, read_meta
from .errors import UsageError, first_line


@dataclass
class ResumePoint:
    """A checkpoint to resume from.

    Attributes:
        path: The file; None if the folder has no checkpoint at all.
        seed: The seed of the training that saved it.
        remarks: Sentences on checkpoints that could not be used.
    """

    path: Path | None = None
    seed: int | None = None
    remarks: list[str] = field(default_factory=list)


def newest_whole_checkpoint(folder: str | Path) -> ResumePoint:
    """The newest intact checkpoint in a work folder.

    The folder itself is searched, not the path in its ``last_checkpoint``, so that it may be moved or copied.
    Checkpoints of the best score do not hold the state of the optimizer and do not count.

    Raises:
        UsageError: If there are checkpoints, but none is intact.
    """
    folder, point = Path(folder), ResumePoint()
    for path in sorted(_candidates(folder), key=_saved_at, reverse=True):
        try:
            meta = read_checkpoint(path).get('meta') or {}
            if 'iter' not in meta:
                raise UsageError(f'{path} was not saved by a training run')
        except UsageError as error:
            point.remarks.append(first_line(error))
            continue
        point.path, point.seed = path, meta.get('seed')
        break
    if point.remarks and point.path is None:
        raise UsageError(f'{folder} has no checkpoint that can be used: {"; ".join(point.remarks)}')
    pointer = folder / 'last_checkpoint'
    name = Path(pointer.read_text(errors='replace').strip()).name if pointer.is_file() else None
    if point.path and name != point.path.name:
        point.remarks.append(f'{pointer} names {name or "no file"}, {point.path.name} is the newest whole checkpoint')
    return point


def _candidates(folder: Path) -> list[Path]:
    return [path for path in folder.glob('*.pth') if re.search(r'\d+\.pth$', path.name)
            and not path.name.startswith('best_')]


def _saved_at(path: Path) -> tuple[str, int]:
    """Time of saving, and iteration. The time is read from the file, so that copies keep it; for damaged files it is
    the time of modification."""
    try:
        meta = read_meta(path)
        return meta['time'], meta['iter']
    except Exception:  # damaged files may raise any error; read_checkpoint reports them
        return time.strftime('%Y%m%d_%H%M%S', time.localtime(path.stat().st_mtime)), 0


def resume(cfg: Config, start_if_none: bool) -> list[str]:
    """Make a config resume from the newest intact checkpoint of its work folder; ``load_from`` is overridden.

    The seed of the interrupted training is kept.

    Args:
        cfg: Config of the training; changed in place.
        start_if_none: If the folder has no checkpoint, train from the start; otherwise it is an error.

    Returns:
        Sentences for the user.

    Raises:
        UsageError: If there is no checkpoint to resume from.
    """
    folder = _checkpoint_folder(cfg)
    point = newest_whole_checkpoint(folder)
    if point.path is None:
        if not start_if_none:
            raise UsageError(f'{folder} has no checkpoint to resume from; set --work-dir, or leave out --resume to '
                             'train from the start')
        cfg.resume = False
        return [f'{folder} has no checkpoint yet: training from the start']
    cfg.resume, cfg.load_from = True, str(point.path)
    randomness = cfg.get('randomness') or {}
    if point.seed is not None:
        if randomness.get('seed') not in (None, point.seed):
            point.remarks.append(f'the seed stays {point.seed}, with which the training began')
        cfg.randomness = dict(randomness, seed=point.seed)
    return [*point.remarks, f'resuming from {point.path}']


def _checkpoint_folder(cfg: Config) -> Path:
    """Where MMEngine's CheckpointHook saves."""
    out_dir = ((cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('out_dir')
    return Path(out_dir, Path(cfg.work_dir).name) if out_dir else Path(cfg.work_dir)
