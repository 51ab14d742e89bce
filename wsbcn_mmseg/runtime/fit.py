"""Compare a checkpoint with a network: used by training, testing, inference and export."""
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from .checkpoint import read_checkpoint, weights_in
from .errors import CheckpointError, count_tensors
from .saved_config import PartSettings, saved_settings

_BODY = ('backbone', 'neck')  # parts of a network whose tensors do not depend on the number of classes
_UNUSED = 'auxiliary_head.'  # only used in training
ENOUGH = 0.8  # share of a backbone's kernels that must come from the file, by number of elements
_SIZES = re.compile(r'size mismatch for (\S+): copying a param with shape torch.Size\(\[([\d, ]*)\]\) from checkpoint, '
                    r'the shape in current model is torch.Size\(\[([\d, ]*)\]\)')


@dataclass
class Fit:
    """Comparison of the tensors in a file with those of a network.

    Attributes:
        source: The file.
        shapes: Of the network's tensors, by name, without ``num_batches_tracked`` of BatchNorm.
        missing: Names of tensors that the file does not have.
        unexpected: Names of tensors that only the file has.
        other_shape: For tensors whose shapes differ, the shape in the file and the shape in the network.
        classes: The names in ``other_shape`` that belong to a head with another number of classes.
        not_finite: Names of tensors in the file with NaN or infinity.
        settings: Sentences on layers whose tensors have the same names and shapes, but another meaning.
    """

    source: str
    shapes: dict[str, tuple]
    missing: list[str]
    unexpected: list[str]
    other_shape: dict[str, tuple[tuple, tuple]]
    classes: list[str]
    not_finite: list[str]
    settings: list[str] = field(default_factory=list)

    def require_all(self) -> None:
        """Raise a CheckpointError unless every tensor fits; the file may have auxiliary heads in addition."""
        self.unexpected = [name for name in self.unexpected if not name.startswith(_UNUSED)]
        self._raise_if([*self._classes(), *self._names(), *self.settings, *self._not_finite()])

    def require_most(self, converted: bool = False) -> list[str]:
        """Raise a CheckpointError unless training can start from the file.

        Heads may be missing or have another number of classes; most of the backbone must be in the file.

        Args:
            converted: Whether layers of the network were replaced, so that norms and kernels may differ.

        Returns:
            Sentences for the user: one on the tensors that do not come from the file, and one for each other remark.
        """
        refused = [] if converted else [*self.settings]
        if self._share('') == 0 or self._share_of_body() < ENOUGH:
            refused = [*self._classes(), *self._names(), *refused]
        self._raise_if([*refused, *self._not_finite()])
        new = [*self.missing, *self.other_shape]
        remarks = [f'{self.source} {setting}' for setting in self.settings]
        if new:
            why = f', because the file {" and ".join(self._classes())}' if self.classes else ''
            remarks.append(f'{count_tensors(new)} are newly initialized{why}; the other '
                           f'{len(self.shapes) - len(new)} come from {self.source}')
        return remarks

    @property
    def body_fits(self) -> bool:
        """Whether backbone and neck have the same tensors in the file and the network."""
        return not any(name.startswith(tuple(f'{part}.' for part in _BODY))
                       for name in (*self.missing, *self.unexpected, *self.other_shape))

    def _raise_if(self, reasons: list[str]) -> None:
        if reasons:
            raise CheckpointError(f'{self.source} {", and ".join(reasons)}')

    def _classes(self) -> list[str]:
        if not self.classes:
            return []
        old, new = next((old, new) for a, b in (self.other_shape[name] for name in self.classes)
                        for old, new in zip(a, b, strict=True) if old != new)
        kind = 'classes' if min(old, new) > 1 else 'output channels'
        return [f'has {old} {kind}, but the model has {new}']

    def _names(self) -> list[str]:
        others = [name for name in self.other_shape if name not in self.classes]
        if not self.missing and not self.unexpected and not others or self.classes and not self._has_body():
            return []
        parts = [f'{count_tensors(self.missing)} missing', f'{count_tensors(self.unexpected)} unexpected']
        if others:
            shape, expected = self.other_shape[others[0]]
            parts.append(f'{count_tensors(others)} of another shape ({list(shape)} instead of {list(expected)})')
        return [f'was trained with another network or normalization: {", ".join(parts)}']

    def _has_body(self) -> bool:
        """Whether the file has more than a head."""
        return len(self.missing) + len(self.other_shape) < len(self.shapes) or bool(self.unexpected)

    def _not_finite(self) -> list[str]:
        if not self.not_finite:
            return []
        return [f'holds NaN or infinity in {count_tensors(self.not_finite)}; take an earlier checkpoint']

    def _share_of_body(self) -> float:
        """Share of the backbone that comes from the file; 1 if the network has no backbone or the file has none."""
        prefix = 'backbone.' if any(name.startswith('backbone.') for name in self.shapes) else ''
        touched = prefix and not any(name.startswith(prefix) for name in self._fitting()) and not any(
            name.startswith(prefix) for name in (*self.unexpected, *self.other_shape))
        return 1. if touched else self._share(prefix)

    def _fitting(self) -> set[str]:
        return set(self.shapes) - set(self.missing) - set(self.other_shape)

    def _share(self, prefix: str) -> float:
        """Share of the kernels under a prefix that fit, by elements; of all tensors if there are no kernels. Layers
        that depend on the number of classes do not count."""
        names = [name for name in self.shapes if name.startswith(prefix) and name not in self.classes]
        names = [name for name in names if len(self.shapes[name]) > 1] or names
        sizes = {name: math.prod(self.shapes[name]) for name in names}
        return sum(sizes[name] for name in self._fitting() & set(names)) / max(1, sum(sizes.values()))


def load_and_compare(module: nn.Module, weights: dict[str, torch.Tensor], source: str | Path,
                     settings: dict[str, PartSettings] | None = None, part: str = '') -> Fit:
    """Load the tensors that fit a module, and return how the others differ.

    Args:
        module: The network, or a part of it; changed in place.
        weights: A state dict.
        source: The file, for messages.
        settings: From :func:`~wsbcn_mmseg.runtime.saved_config.saved_settings` of the file. Defaults to None.
        part: The module's name in the network, if it is a part, such as ``'backbone'``.
    """
    state = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()
             if isinstance(tensor, torch.Tensor) and not name.endswith('num_batches_tracked')}
    other_shape = {}
    try:
        missing, unexpected = module.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # shapes differ; the other tensors are loaded
        found = {name: (_shape(old), _shape(new)) for name, old, new in _SIZES.findall(str(error))}
        other_shape = {name: found[name] for name in state if name in found}
        if not other_shape:
            raise CheckpointError(f'{source} cannot be loaded: {str(error).splitlines()[-1].strip()}') from error
        missing, unexpected = _names(module, weights)
    return Fit(str(source), state, [name for name in missing if name in state], list(unexpected), other_shape,
               [name for name, shapes in other_shape.items() if _is_of_classes(name, *shapes, _class_counts(module))],
               [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()],
               _other_settings(module, settings or {}, part))


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(side) for side in text.split(',') if side.strip())


def _names(module: nn.Module, weights: dict) -> tuple[list[str], list[str]]:
    """Missing and unexpected names, for when ``load_state_dict`` raises an error before it returns them."""
    own = module.state_dict()
    return [name for name in own if name not in weights], [name for name in weights if name not in own]


def _class_counts(module: nn.Module) -> set[int]:
    """Sizes that the class dimension of a head may have, including a background class or four numbers per box."""
    counts = {getattr(head, name) for head in module.modules()
              for name in ('num_classes', 'out_channels', 'cls_out_channels') if hasattr(head, 'num_classes')
              and isinstance(getattr(head, name, None), int)}
    return {size for count in counts for size in (count, count + 1, 4 * count)}


def _is_of_classes(name: str, old: tuple, new: tuple, counts: set[int]) -> bool:
    if name.split('.')[0] in _BODY or len(old) != len(new):
        return False
    differing = [axis for axis, size in enumerate(old) if size != new[axis]]
    return len(differing) == 1 and new[differing[0]] in counts


def _other_settings(module: nn.Module, settings: dict[str, PartSettings], part: str) -> list[str]:
    """Settings of the file's layers that differ from the network's but cannot be seen in shapes."""
    parts = {part: module} if part else dict(module.named_children())
    found = {}
    for name, network in parts.items():
        if name not in settings:
            continue
        for sentence in settings[name].differences(_standardized(network), _groups(network)):
            found.setdefault(sentence, []).append(name)
    return [f'{sentence} (in {", ".join(names)})' for sentence, names in found.items()]


def _standardized(module: nn.Module) -> bool | None:
    """Whether a part of a network standardizes kernels; None if it has no kernels."""
    kernels = [layer for layer in module.modules() if isinstance(getattr(layer, 'weight', None), torch.Tensor)
               and layer.weight.dim() > 2]
    return any(hasattr(layer, 'standardized_weight') for layer in kernels) if kernels else None


def _groups(module: nn.Module) -> set[int]:
    return {layer.num_groups for layer in module.modules() if isinstance(layer, nn.GroupNorm)}


def load_file(module: nn.Module, path: str | Path, prefix: str = '', part: str = '') -> Fit:
    """Load a checkpoint file into a network, or a part of it, and return what did not fit.

    Args:
        module: The network or its part; changed in place.
        path: See :func:`~wsbcn_mmseg.runtime.checkpoint.read_checkpoint`.
        prefix: Prefix of the module's tensors in the file. Defaults to none.
        part: See :func:`load_and_compare`.

    Raises:
        FileNotFoundError, ValueError: If the file cannot be used; the message is one sentence.
    """
    return load_checkpoint(module, read_checkpoint(path), path, prefix, part)


def load_checkpoint(module: nn.Module, checkpoint: dict, source: str | Path, prefix: str = '', part: str = '') -> Fit:
    """Like :func:`load_file`, for a checkpoint that was already read from ``source``."""
    weights = weights_in(checkpoint, source)
    if prefix:
        prefix = prefix.rstrip('.') + '.'
        weights = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        if not weights:
            raise CheckpointError(f'{source} has no tensors under {prefix[:-1]}')
    return load_and_compare(module, weights, source, saved_settings(checkpoint), part)
