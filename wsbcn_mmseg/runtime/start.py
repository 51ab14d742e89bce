"""All checks before a run starts. Each fault is one sentence, and all are reported together."""
import inspect
import os
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, HOOKS, METRICS, init_default_scope
from torch import nn

from .building import build, build_network, check_arguments, quietly, unknown_types
from .checks import (
    check_counts,
    check_data,
    check_environment,
    check_gpus,
    check_sections,
    check_work_dir,
    dataset_type,
    datasets_of,
    heads,
)
from .errors import Faults, UsageError, first_line
from .fit import load_file
from .initial_weights import compare_initial_weights
from .random_streams import random_stream
from .samples import Labels, check_samples

TRAINING = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
TESTING = ('model', 'test_dataloader', 'test_cfg', 'test_evaluator')


@dataclass
class Effort:
    """How thorough the checks are.

    Attributes:
        seconds: Time for the samples of each data set; the first sample is always loaded.
        samples: Number of samples to load from each data set.
        whole_data: Also build data sets that are not lists of images, which may take minutes.
    """

    seconds: float
    samples: int
    whole_data: bool


BEFORE_A_RUN, ON_REQUEST = Effort(.8, 6, False), Effort(10, 50, True)


def effort_of(check: bool) -> Effort:
    """The effort for ``--check``, or before a run; ``tools/torchrun.sh`` checks before a run too."""
    return ON_REQUEST if check and 'LOCAL_WORLD_SIZE' not in os.environ else BEFORE_A_RUN


def check_training(cfg: Config, faults: Faults, effort: Effort) -> list[str]:
    """Check the config, data, network and files of a training.

    Args:
        cfg: The config that the runner will get.
        faults: Faults are added here.
        effort: How thorough the checks are.

    Returns:
        Sentences for the user on the weights to start from.
    """
    network = _check_set_up(cfg, faults, TRAINING, ('train', 'val'), effort)
    remarks = []
    if network is not None:
        with faults:
            _check_optimizer(cfg, network)
        for compare in compare_initial_weights(cfg, network):
            with faults, quietly():
                remarks += compare()
    return list(dict.fromkeys(remarks))


def check_testing(cfg: Config, checkpoint: str, faults: Faults, effort: Effort) -> None:
    """Like :func:`check_training`, for the evaluation of a checkpoint, which must fit exactly."""
    network = _check_set_up(cfg, faults, TESTING, ('test', ), effort)
    with faults:
        if network is not None:
            with quietly():
                load_file(network, checkpoint).require_all()


def _check_set_up(cfg: Config, faults: Faults, needed: tuple[str, ...], phases: tuple[str, ...],
                  effort: Effort) -> nn.Module | None:
    """Checks for both training and testing; returns the network if it can be built."""
    numbered = {*needed, *(f'{phase}_dataloader' for phase in phases)}
    for check in (check_environment, check_gpus, lambda: check_work_dir(cfg.work_dir),
                  lambda: check_counts(cfg, sorted(numbered))):
        with faults:
            check()
    incomplete = Faults()
    with incomplete:
        check_sections(cfg, needed)
    for sentence in incomplete.sentences:
        faults.add(sentence)
    if incomplete.sentences:
        return None
    with faults:
        check_data(cfg, phases)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    network, data_is_there = None, not faults.sentences
    with random_stream(0):
        with faults:
            network = build_network(cfg.model)
        for place, part in _hooks(cfg, phases):
            with faults:
                check_arguments(HOOKS if 'hook' in place else METRICS, part, place)
        for where, dataset in datasets_of(cfg, phases):
            with faults:
                _check_dataset(cfg, where, dataset, network, faults, effort if data_is_there else None)
    return network


def _hooks(cfg: Config, phases: tuple[str, ...]) -> list[tuple[str, dict]]:
    """Configs of hooks and metrics."""
    found = [(f'custom_hooks.{index}', hook) for index, hook in enumerate(cfg.get('custom_hooks') or [])]
    found += [(f'default_hooks.{name}', hook) for name, hook in (cfg.get('default_hooks') or {}).items()]
    for phase in phases:
        evaluator = cfg.get(f'{phase}_evaluator') or []
        found += [(f'{phase}_evaluator.{index}', metric) for index, metric in enumerate(evaluator)] \
            if isinstance(evaluator, (list, tuple)) else [(f'{phase}_evaluator', evaluator)]
    return [(place, part) for place, part in found if isinstance(part, dict) and isinstance(part.get('type'), str)]


def _check_optimizer(cfg: Config, network: nn.Module) -> None:
    if not cfg.get('optim_wrapper') or 'Amp' in str(cfg.optim_wrapper.get('type')):
        return  # mixed precision needs a GPU
    try:
        with quietly():
            build_optim_wrapper(network, cfg.optim_wrapper.copy())
    except Exception as error:
        unknown = next(unknown_types(cfg.optim_wrapper, 'optim_wrapper'), None)
        raise UsageError(unknown or f'optim_wrapper cannot be built: {first_line(error)}') from error


def _check_dataset(cfg: Config, where: str, config: dict, network: nn.Module | None, faults: Faults,
                   effort: Effort | None) -> None:
    """Build a data set's pipeline and, if ``effort`` is given, the data set, and check samples."""
    try:
        with quietly():
            Compose(config.get('pipeline') or [])
    except Exception as error:
        unknown = next(unknown_types(config.get('pipeline'), f'{where}.pipeline'), None)
        raise UsageError(unknown or f'{where}.pipeline cannot be built: {first_line(error)}') from error
    if dataset_type(config) is None:
        raise UsageError(next(unknown_types(dict(type=config.get('type')), where), f'{where} has no type'))
    is_segmentation = hasattr(dataset_type(config), 'get_label_map')
    if effort is None or not (is_segmentation or effort.whole_data):
        return
    quick = dict(serialize_data=False) if _takes(dataset_type(config), 'serialize_data') else {}
    try:
        dataset = build(DATASETS, {**config, **quick}, where)
    except UsageError as error:
        if 'need at least one array to concatenate' in str(error):  # MMEngine's error for an empty list
            raise UsageError(f'{where} has no samples: {_listing(config)} lists none') from error
        raise
    if not len(dataset):
        raise UsageError(f'{where} has no samples: {_listing(config)} lists none')
    if not is_segmentation:
        _load_first(dataset, where)
        return
    for sentence in check_samples(dataset, where, _labels(cfg), network, effort.seconds, effort.samples,
                                  where.startswith('train')):
        faults.add(sentence)


def _takes(kind: type, argument: str) -> bool:
    parameters = inspect.signature(kind).parameters.values()
    return any(parameter.name == argument or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _listing(config: dict) -> Path:
    """The file or folder that lists the samples of a data set."""
    files = config.get('ann_file') or (config.get('data_prefix') or {}).get('img_path') or ''
    return Path(config.get('data_root') or '.', files)


def _load_first(dataset, where: str) -> None:
    try:
        with quietly():
            dataset[0]
    except Exception as error:
        raise UsageError(f'the first sample of {where} cannot be loaded: {first_line(error)}') from error


def _labels(cfg: Config) -> Labels:
    """The values that label maps of a config's data sets may hold."""
    found = [head for _, head in heads(cfg)]
    counts = [max(head['num_classes'], 2) if head.get('out_channels') == 1 else head['num_classes'] for head in found
              if isinstance(head.get('num_classes'), int)]
    return Labels(min(counts, default=None), {head.get('ignore_index', 255) for head in found} - {None} or {255})
