"""Read settings of the network from the config that a checkpoint contains. The text is parsed, never executed."""
import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

_LONGEST = 1 << 20  # longest config that is parsed, in characters
_UNKNOWN = object()
_AFTER_CONVOLUTIONS = ('BN', 'BN2d', 'BatchNorm2d', 'SyncBN', 'SyncBatchNorm', 'GN', 'GroupNorm', 'GNByWidth', 'BCN')


@dataclass
class PartSettings:
    """Settings of a part of a network that change the meaning of its tensors, but not their names or shapes.

    Attributes:
        standardized: Whether kernels were trained with Weight Standardization; None if it is not known.
        groups: The numbers of groups of its GroupNorms.
    """

    standardized: bool | None = None
    groups: set[int] = field(default_factory=set)

    def differences(self, standardized: bool | None, groups: set[int]) -> list[str]:
        """Differences from a network's settings, each as the end of a sentence that starts with the file's name."""
        found = []
        if None not in (self.standardized, standardized) and self.standardized != standardized:
            found.append(f'was trained {"with" if self.standardized else "without"} Weight Standardization, which this '
                         f'network {"does not have" if self.standardized else "has"}')
        if self.groups and groups and not self.groups & groups:
            found.append(f'was trained with {_some(self.groups)} groups per GroupNorm, where this network has '
                         f'{_some(groups)}')
        return found


def _some(numbers: set[int]) -> str:
    return ' or '.join(map(str, sorted(numbers)))


def saved_settings(checkpoint: dict) -> dict[str, PartSettings]:
    """Settings by the name of each part of the network, from ``meta['cfg']`` of a checkpoint; empty if it has none."""
    meta = checkpoint.get('meta')
    text = meta.get('cfg') if isinstance(meta, dict) else None
    model = _assigned(text, 'model') if isinstance(text, str) else text.get('model') if isinstance(text, dict) else None
    if not isinstance(model, dict):
        return {}
    conversion = model.get('conversion') if isinstance(model.get('conversion'), dict) else {}
    return {name: _settings(name, part, conversion) for name, part in model.items()
            if isinstance(part, (dict, list)) and name not in ('conversion', 'data_preprocessor')}


def _assigned(text: str, name: str):
    """The value that a config assigns to a name; parts that are not literals or ``dict(...)`` become ``_UNKNOWN``."""
    if len(text) > _LONGEST:
        return None
    try:
        for statement in ast.parse(text).body:
            if isinstance(statement, ast.Assign) and [getattr(t, 'id', None) for t in statement.targets] == [name]:
                return _value(statement.value)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    return None


def _value(node: ast.expr):
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {key.value: _value(value) for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant)}
    if isinstance(node, ast.Call) and getattr(node.func, 'id', None) == 'dict' and not node.args:
        merged = {}
        for keyword in node.keywords:
            value = _value(keyword.value)
            merged.update({keyword.arg: value} if keyword.arg else value if isinstance(value, dict) else {})
        return merged
    return _UNKNOWN


def _dicts(value) -> Iterator[dict]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _dicts(inner)


def _settings(name: str, part: dict | list, conversion: dict) -> PartSettings:
    dicts = list(_dicts(part))
    convs = [_type(inner['conv_cfg']) for inner in dicts if 'conv_cfg' in inner]
    norms = [inner['norm_cfg'] for inner in dicts if isinstance(inner.get('norm_cfg'), dict)]
    standardized = any(conv.startswith('ConvWS') for conv in convs) if convs or norms else None
    covered = _is_selected(name, conversion) if conversion else False
    if conversion.get('ws', True) is True and covered is not False:
        before_norms = name == 'backbone' and any(_type(norm) in _AFTER_CONVOLUTIONS for norm in norms)
        standardized = standardized or (covered if before_norms else None)  # other parts may have no such convolutions
    if conversion.get('norm', 'BCN') is not None and covered is not False:
        norms = []  # replaced, unless the conversion kept them
    groups = {norm.get('num_groups') for norm in norms if _type(norm) in ('GN', 'GroupNorm')}
    return PartSettings(standardized, {count for count in groups if isinstance(count, int)})


def _type(config) -> str:
    kind = config.get('type') if isinstance(config, dict) else None
    return kind.rpartition('.')[2] if isinstance(kind, str) else ''


def _is_selected(part: str, conversion: dict) -> bool | None:
    """Whether the conversion covers a part; None if it covers only some of its layers or depends on a pattern."""
    included, excluded = ([pattern for pattern in conversion.get(key) or [] if isinstance(pattern, str)]
                          for key in ('include', 'exclude'))
    if part in excluded:
        return False
    if included and part not in included or excluded:
        return None
    return True
