"""Compare the files that a training starts from with the network, before the training starts."""
import inspect
from collections.abc import Callable, Iterator

from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

from .building import build_network
from .checkpoint import read_checkpoint, read_weights
from .errors import CheckpointError
from .fit import load_checkpoint, load_file


def compare_initial_weights(cfg: Config, network: nn.Module) -> Iterator[Callable[[], list[str]]]:
    """Comparisons of a network with the checkpoint to resume from, or with the files of ``load_from``, of the
    ``init_cfg`` of each part and of ``conversion.checkpoint``.

    Args:
        cfg: Config of the training.
        network: Built from ``cfg.model``; the comparisons change its weights.

    Yields:
        Functions that return sentences for the user, or raise a UsageError if the file does not fit.
    """
    conversion, load_from = cfg.model.get('conversion') or {}, cfg.get('load_from')
    if cfg.get('resume'):  # all weights come from the checkpoint
        yield lambda: _resume(network, load_from)
        return
    original, converted = network, bool(conversion)
    if conversion.get('preserve'):  # weights are loaded before the conversion, except those of load_from
        original = build_network({**{name: value for name, value in cfg.model.items() if name != 'conversion'},
                                  'type': conversion['type']})
        converted, checkpoint = False, conversion.get('checkpoint')
        if checkpoint:
            yield lambda: load_file(original, checkpoint).require_most()
    for name, part in original.named_modules():
        yield from (_comparison(part, init_cfg, name, converted) for init_cfg in _pretrained(part))
    if load_from and original is not network:
        yield lambda: _start_after_conversion(network, original, load_from)
    elif load_from:
        yield lambda: load_file(network, load_from).require_most(converted)


def _resume(network: nn.Module, path: str) -> list[str]:
    try:
        load_file(network, path).require_all()
    except CheckpointError as error:
        raise CheckpointError(f'{error}; --resume takes the newest checkpoint of the work folder and needs its config: '
                              'use that config, remove the checkpoint, or set another --work-dir') from error
    return []


def _start_after_conversion(network: nn.Module, original: nn.Module, path: str) -> list[str]:
    """Remarks on a checkpoint that is loaded into a converted network, whose norms and kernels it must have."""
    checkpoint = read_checkpoint(path)
    fit = load_checkpoint(network, checkpoint, path)
    if not fit.body_fits and load_checkpoint(original, checkpoint, path).body_fits:
        raise CheckpointError(f'{path} is a checkpoint of the network before its conversion; set '
                              'model.conversion.checkpoint to it, instead of load_from')
    return fit.require_most()


def _pretrained(part: nn.Module) -> list[dict]:
    init_cfg = getattr(part, 'init_cfg', None)
    init_cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    return [init for init in init_cfgs if isinstance(init, dict) and init.get('checkpoint')]


def _comparison(part: nn.Module, init_cfg: dict, name: str, converted: bool) -> Callable[[], list[str]]:
    kind, path = init_cfg['type'], str(init_cfg['checkpoint'])
    kind = kind if isinstance(kind, str) else kind.__name__

    def compare() -> list[str]:
        if kind == 'PretrainedBackbone':
            WEIGHT_INITIALIZERS.build(init_cfg).compare(part).require_all()
            return []
        if kind not in ('Pretrained', 'PretrainedInit') or _loads_by_itself(part):
            read_weights(path)
            return []
        fit = load_file(part, path, init_cfg.get('prefix') or '', name)
        return [remark.replace(' are newly initialized', f' of {name or "the network"} are newly initialized', 1)
                for remark in fit.require_most(converted)]

    return compare


def _loads_by_itself(part: nn.Module) -> bool:
    """Whether a class overrides ``init_weights``, which may translate names and shapes."""
    return not isinstance(part, BaseModule) or \
        inspect.getattr_static(type(part), 'init_weights') is not BaseModule.init_weights
