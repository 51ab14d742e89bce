"""Conversion of any OpenMMLab config to other norms and to Weight Standardization."""
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator

from mmengine.registry import MODELS

from .convert import norm_config
from .norm_families import check_preserving, find_norm
from .selection import matches, patterns

NORMS = ('BN', 'BN1d', 'BN2d', 'BN3d', 'SyncBN', 'GN', 'BatchNorm1d', 'BatchNorm2d', 'BatchNorm3d', 'SyncBatchNorm',
         'GroupNorm')
PLAIN_CONVS = (None, 'Conv', 'Conv1d', 'Conv2d', 'Conv3d')
KEPT_SETTINGS = ('eps', 'requires_grad', 'num_groups')  # settings that a new norm keeps if it has them


def apply_bcn_ws(cfg: dict, norm: str | dict | None = 'BCN', ws: bool = True, include: str | Iterable[str] = (),
                 exclude: str | Iterable[str] = (), preserve: bool = False, log: Callable[[str], None] | None = print
                 ) -> dict:
    """Change the config of a network of any OpenMMLab project to BCN and Weight Standardization, in place.

    Every ``norm_cfg`` of BatchNorm, SyncBatchNorm or GroupNorm becomes ``norm``. Each part of the model that has a
    ``norm_cfg`` and accepts a ``conv_cfg`` gets ``conv_cfg=dict(type='ConvWS')``. The config cannot change everything
    (parts without ``conv_cfg``, norms that a class builds by itself, convolutions that no norm follows). The rest is
    therefore converted by ``convert_model`` after the model is built: ``model.type`` becomes ``ConvertedModel``, and
    ``model.conversion`` has the original type and the arguments. This also applies to parts of which patterns select
    only some layers, and, with ``preserve``, to the whole model.

    ``custom_imports`` is added. For BCN, the hooks ``BCNUpdateRateHook`` and ``SyncNormStatisticsHook`` are added,
    the first with ``min_rate=0.01`` for Adam and similar optimizers, whose learning rates are small. With ``ws`` and
    gradient accumulation, ``HeldKernelsHook`` is added.

    Args:
        cfg: A config, or the dict under its ``model``.
        norm: Name or config of the new norm; None keeps the norms. Defaults to ``'BCN'``.
        ws: Whether convolutions before a norm are standardized. Defaults to True.
        include, exclude: Names or patterns of layers, as for :func:`wsbcn_mmseg.convert_model`.
        preserve: Set it if the weights in ``init_cfg`` or ``load_from`` were trained without Weight Standardization.
            The outputs of the network then change as little as possible, as with ``convert_model(...,
            preserve=True)``. Defaults to False.
        log: Called with a line for each change; None for no output. Defaults to ``print``.

    Returns:
        ``cfg``.

    Raises:
        ValueError: If ``cfg`` has no model or is converted already, if no norm is registered as ``norm``, or if
            ``norm`` cannot preserve the outputs.

    Warns:
        UserWarning: If the names of the pretrained weights in the config suggest that they were not trained with
            Weight Standardization.

    Examples:
        >>> cfg = Config.fromfile('fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py')
        >>> runner = Runner.from_cfg(apply_bcn_ws(cfg))
    """
    model = cfg['model'] if 'model' in cfg else cfg
    if not isinstance(model, dict) or 'type' not in model:
        raise ValueError('the config has no model; give a whole config, or the dict under its `model`')
    if model['type'] == 'ConvertedModel':
        raise ValueError('the config is converted already')
    include, exclude, norm_cfg = patterns(include), patterns(exclude), norm_config(norm)
    norm_class = find_norm(norm_cfg['type']) if norm_cfg else None
    if preserve:
        check_preserving(norm_class)
    rewrite = _Rewrite(norm_cfg, ws, cfg.get('default_scope'))
    for name, part in _parts(model):
        if not preserve and _decided(name, include, exclude):
            rewrite.part(part, f'model.{name}')
    changes = rewrite.changes
    if cfg is not model:
        if not include and not exclude and not preserve and 'norm_cfg' in cfg:
            cfg['norm_cfg'] = rewrite.norm(cfg['norm_cfg'])  # the model's norm_cfg refer to it
        changes += _add_imports_and_hooks(cfg, norm_cfg, ws)
    conversion = dict(type=model['type'], norm=norm_cfg or None, ws=ws, include=include, exclude=exclude)
    if preserve:
        conversion.update(preserve=True, checkpoint=cfg.get('load_from'))  # it fits the unconverted network
        if conversion['checkpoint']:
            cfg['load_from'] = None
    changes.append(f'model.type: {model["type"]} -> ConvertedModel (converts what is left, after building)')
    model['type'], model['conversion'] = 'ConvertedModel', conversion
    for change in changes if log else ():
        log(change)
    if ws and not preserve:
        _warn_of_weights(cfg, model)
    return cfg


def _parts(model: dict) -> Iterator[tuple[str, dict]]:
    """Backbone, neck and heads, with the names of their modules in the model."""
    for name, value in model.items():
        for index, part in enumerate(value if isinstance(value, (list, tuple)) else [value]):
            if isinstance(part, dict) and name not in ('data_preprocessor', 'train_cfg', 'test_cfg', 'init_cfg'):
                yield f'{name}.{index}' if isinstance(value, (list, tuple)) else name, part


def _decided(part: str, include: list[str], exclude: list[str]) -> bool:
    """Whether all layers of a part are converted, so that its dict can be changed."""
    inside = [pattern for pattern in include + exclude if pattern.startswith(f'{part}.') or set(pattern) & set('*?[')]
    return not inside and (not include or matches(part, include)) and not matches(part, exclude)


class _Rewrite:
    """Rewrites dicts and records the changes."""

    def __init__(self, norm_cfg: dict, ws: bool, scope: str | None):
        self.norm_cfg, self.ws, self.scope, self.changes = norm_cfg, ws, scope, []

    def part(self, part: dict, path: str) -> None:
        """Rewrite all norms in ``part``, and the ``conv_cfg`` of each dict with a norm."""
        for name, value in list(part.items()):
            if _is_norm(value):
                self._set_conv(part, path, value)
                if self.norm_cfg:
                    part[name] = self.norm(value)
                    self.changes.append(f'{path}.{name}: {_name(value["type"])} -> {_name(self.norm_cfg["type"])}')
            elif isinstance(value, dict):
                self.part(value, f'{path}.{name}')
            elif isinstance(value, (list, tuple)):
                for index, item in enumerate(value):
                    if isinstance(item, dict):
                        self.part(item, f'{path}.{name}.{index}')

    def norm(self, old: dict) -> dict:
        """The new norm, with the settings of the old one that both have."""
        if not _is_norm(old) or not self.norm_cfg:
            return old
        known = KEPT_SETTINGS if self.norm_cfg['type'] in ('BCN', 'GN') else KEPT_SETTINGS[:2]
        defaults = dict(num_groups=32) if self.norm_cfg['type'] == 'GN' else {}
        return defaults | {name: old[name] for name in known if name in old} | self.norm_cfg

    def _set_conv(self, part: dict, path: str, norm: dict) -> None:
        conv = (part.get('conv_cfg') or {}).get('type')
        deformable = part.get('dcn') or part.get('dcn_cfg')  # needs conv_cfg=None; convert_model converts it
        if (not self.ws or 'type' not in part or deformable or _name(conv) not in PLAIN_CONVS
                or not self._takes_conv_cfg(part)):
            return
        dimensions = {'1d': '1d', '3d': '3d'}.get((_name(conv) or _name(norm['type']))[-2:], '')
        part['conv_cfg'] = dict(type=f'ConvWS{dimensions}')
        self.changes.append(f'{path}.conv_cfg: {_name(conv)} -> ConvWS{dimensions}')

    def _takes_conv_cfg(self, part: dict) -> bool:
        part_class = part['type']
        if isinstance(part_class, str):
            with MODELS.switch_scope_and_registry(part.get('_scope_', self.scope)) as registry:
                part_class = registry.get(part_class)
        for base in inspect.getmro(part_class) if inspect.isclass(part_class) else ():
            if '__init__' in vars(base):
                parameters = inspect.signature(base.__init__).parameters
                if 'conv_cfg' in parameters:
                    return True
                if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
                    return False
        return False


def _name(kind) -> str | None:
    return kind.__name__ if isinstance(kind, type) else kind


def _is_norm(value) -> bool:
    return isinstance(value, dict) and _name(value.get('type')) in NORMS


def _add_imports_and_hooks(cfg: dict, norm_cfg: dict, ws: bool) -> list[str]:
    changes = []
    imports = cfg.get('custom_imports') or {}
    modules = imports.get('imports', [])
    modules = [modules] if isinstance(modules, str) else list(modules)
    if 'wsbcn_mmseg' not in modules:
        cfg['custom_imports'] = imports | dict(imports=[*modules, 'wsbcn_mmseg'])
        changes.append('custom_imports: + wsbcn_mmseg')
    hooks = list(cfg.get('custom_hooks') or [])
    for hook in _wanted_hooks(cfg.get('optim_wrapper') or {}, norm_cfg, ws):
        if hook['type'] not in map(_hook_name, hooks):
            hooks.append(hook)
            settings = ''.join(f', {name}={value}' for name, value in hook.items() if name != 'type')
            changes.append(f'custom_hooks: + {hook["type"]}{settings}')
            cfg['custom_hooks'] = hooks
    return changes


def _wanted_hooks(optim_wrapper: dict, norm_cfg: dict, ws: bool) -> Iterator[dict]:
    bcn = norm_cfg.get('type') == 'BCN'
    if bcn and norm_cfg.get('mode', 'micro_batch') == 'micro_batch':
        adaptive = re.match('adam|lion|lamb', _name((optim_wrapper.get('optimizer') or {}).get('type')) or '', re.I)
        yield dict(type='BCNUpdateRateHook', min_rate=0.01) if adaptive else dict(type='BCNUpdateRateHook')
    if bcn:
        yield dict(type='SyncNormStatisticsHook')
    if ws and optim_wrapper.get('accumulative_counts', 1) > 1:
        yield dict(type='HeldKernelsHook')


def _hook_name(hook) -> str:
    """Class name of a hook, given as an object or as a config with a name or class as type."""
    kind = hook.get('type') if isinstance(hook, dict) else type(hook)
    return str(_name(kind)).rpartition('.')[2]  # without the scope


def _warn_of_weights(cfg: dict, model: dict) -> None:
    files = dict.fromkeys([*_weights(model), *filter(None, [cfg.get('load_from')])])
    for file in files:
        if not re.search(r'(?<![a-z])ws(?![a-z])', str(file).lower()):
            warnings.warn(f'{file} was, according to its name, trained without Weight Standardization; such weights do '
                          'not transfer; start from weights trained with WS, or keep their function by '
                          'preserve=True (--preserve)', stacklevel=3)


def _weights(node) -> Iterator[str]:
    """Checkpoints in the config of a model."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name in ('pretrained', 'checkpoint') and isinstance(value, str):
                yield value
            else:
                yield from _weights(value)
    elif isinstance(node, (list, tuple)):
        for item in node:
            yield from _weights(item)
