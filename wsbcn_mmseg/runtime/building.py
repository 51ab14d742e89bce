"""Build parts of a config; each error is one sentence that names the place in the config."""
import copy
import difflib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec

from mmengine.registry import (
    DATASETS,
    HOOKS,
    METRICS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    TASK_UTILS,
    TRANSFORMS,
    WEIGHT_INITIALIZERS,
    Registry,
)
from torch import nn

from .errors import UsageError, first_line

# The registries whose types the checked parts of a config may name
_SEARCHED = (MODELS, DATASETS, TRANSFORMS, WEIGHT_INITIALIZERS, TASK_UTILS, HOOKS, METRICS, OPTIMIZERS, OPTIM_WRAPPERS,
             OPTIM_WRAPPER_CONSTRUCTORS)
_PACKAGES = {'mmdet': 'mmdet', 'mmaction': 'mmaction2', 'mmpretrain': 'onedl-mmpretrain or mmpretrain',
             'mmpose': 'mmpose', 'mmdet3d': 'mmdet3d', 'mmseg': 'onedl-mmsegmentation or mmsegmentation'}


def build(registry: Registry, config: dict, where: str):
    """Build the object that a config describes.

    Args:
        registry: One of MMEngine's root registries; the default scope must be set.
        config: A config with a ``type``; it is not changed.
        where: Its place in the whole config, such as ``'model'``.

    Raises:
        UsageError: If it cannot be built.
    """
    try:
        with quietly():
            return registry.build(copy.deepcopy(config))
    except UsageError:
        raise
    except Exception as error:  # constructors may raise any error
        unknown = next(unknown_types(config, where), None)
        if unknown:
            raise UsageError(unknown) from error
        place, because = _innermost(registry, config, where, first_line(error))
        raise UsageError(f'{place} cannot be built: {because}') from error


@contextmanager
def quietly() -> Iterator[None]:
    """Suppress logs and warnings of constructors; the run itself shows them."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(logging.NOTSET)


def build_network(config: dict) -> nn.Module:
    """Build a network from the ``model`` of a config, with the errors of :func:`build`."""
    return build(MODELS, config, 'model')


def check_arguments(registry: Registry, config: dict, where: str) -> None:
    """Raise a UsageError if the type in a config is not known or does not take its arguments; nothing is built."""
    unknown = next(unknown_types(config, where), None)
    if unknown:
        raise UsageError(unknown)
    with registry.switch_scope_and_registry(config.get('_scope_')) as scoped:
        kind = scoped.get(config['type'])
    arguments = {name: value for name, value in config.items() if name not in ('type', '_scope_', 'priority')}
    try:
        if kind is not None:
            inspect.signature(kind).bind(**arguments)
    except TypeError as error:
        raise UsageError(f'{where} cannot be built: {config["type"]} {first_line(error)}') from error


def _innermost(registry: Registry, config: dict, where: str, message: str) -> tuple[str, str]:
    """The innermost part of a config that fails with the same message."""
    for name, part in config.items():
        for index, inner in enumerate(part) if isinstance(part, (list, tuple)) else [(None, part)]:
            if not isinstance(inner, dict) or 'type' not in inner or 'cfg' in name:
                continue
            try:
                with quietly():
                    registry.build(copy.deepcopy(inner))
            except Exception as error:
                if first_line(error) == message:
                    place = f'{where}.{name}' if index is None else f'{where}.{name}.{index}'
                    return _innermost(registry, inner, place, message)
    return where, message


def unknown_types(config, where: str) -> Iterator[str]:
    """Yield a sentence for each ``type`` in a config that is in no registry."""
    if isinstance(config, dict):
        kind = config.get('type')
        if isinstance(kind, str) and not _is_known(kind):
            yield f'{where}.type={kind!r} {_advice(kind)}'
    items = enumerate(config) if isinstance(config, (list, tuple)) else ()
    for name, inner in config.items() if isinstance(config, dict) else items:
        yield from unknown_types(inner, f'{where}.{name}')


def _is_known(kind: str) -> bool:
    for registry in _SEARCHED:
        with registry.switch_scope_and_registry(None) as scoped:
            try:
                if scoped.get(kind) is not None:
                    return True
            except Exception:  # a name with dots is imported, and importing may raise anything
                continue
    return False


def _advice(kind: str) -> str:
    package = kind.partition('.')[0]
    if package != kind and package in _PACKAGES and find_spec(package) is None:
        return _install(package)
    names = {name for registry in _SEARCHED for name in _names(registry)}
    near = difflib.get_close_matches(kind, names, 3, .6) or \
        [name for name in names if name.lower() == kind.lower()]
    return f'is not known; did you mean {" or ".join(near)}?' if near else \
        'is not known; is the module that registers it in custom_imports?'


def _install(package: str) -> str:
    return f'needs {package}, which is not installed here; run: pip install {_PACKAGES[package]}'


def _names(registry: Registry) -> Iterator[str]:
    """Names in a registry, in the current scope and its parents."""
    with registry.switch_scope_and_registry(None) as scoped:
        while scoped is not None:
            yield from scoped.module_dict
            scoped = scoped.parent


def missing_package(cfg: dict) -> str | None:
    """A sentence if the OpenMMLab package of a config's ``default_scope`` is not installed, else None."""
    scope = cfg.get('default_scope')
    if scope in _PACKAGES and find_spec(scope) is None:
        return f'default_scope={scope!r} {_install(scope)}'
    return None
