"""Find the blocks of a network and reduce their activation memory in training."""
import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from functools import reduce
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from wsbcn_mmseg.ops.arguments import check_choice
from wsbcn_mmseg.ops.execution import needs_plain_operations

from .segment import Segment, inside_segment, tensors_in

BLOCKS = 3  # per segment; a segment keeps its input and output
DEAR = 512  # multiplications per output value


def _is_dear(weight: Tensor) -> bool:
    """Whether a convolution with this kernel is expensive for the size of its output. Expanding 1x1 convolutions and
    depth-wise ones are not, unless they are wide."""
    multiplications = weight.shape[1:].numel()
    return multiplications >= weight.shape[0] or multiplications >= DEAR


LEVELS = {'light': lambda weight: True, 'strong': _is_dear}  # whether to keep the output, by the kernel


def save_memory(model: nn.Module, level: str | None = 'light',
                blocks: str | nn.Module | Iterable[str | nn.Module] | None = None) -> list[str]:
    """Make the blocks of a network use less activation memory in training.

    A block keeps only its input, its output, and the outputs of its convolutions for the backward pass. Norms,
    activations and additions are recomputed. Convolutions are not recomputed, except, at level ``'strong'``, those
    whose output is large and cheap: expanding 1x1 convolutions with less than 512 input channels, and depth-wise ones.
    Up to three consecutive blocks in an ``nn.Sequential`` keep only their first input and last output.

    Gradients equal those of the plain network up to rounding. Running statistics and counters of BCN and BatchNorm are
    updated once. Dropout draws the same masks. Modules, parameters and ``state_dict`` do not change; copies and pickles
    of the network save memory too. In evaluation, without gradients, and while a network is traced or exported, blocks
    run as before. ``torch.compile`` runs the blocks in eager mode, with a graph break at each; ``fullgraph=True`` is
    not possible.

    Args:
        model: The network. A new call replaces the settings of the previous one.
        level: ``'light'`` or ``'strong'``; None turns it off. Defaults to ``'light'``.
        blocks: Modules, their names, or patterns of names such as ``'layer3.*'``. A block must depend on its arguments
            and its own state only, and not change its arguments in place. Defaults to None: the repeated elements of
            ``nn.Sequential`` and ``nn.ModuleList`` that hold several convolutions, such as residual blocks.

    Returns:
        The names of the blocks.

    Raises:
        ValueError: If the level does not exist, a name matches no module, or there are no blocks.

    Examples:
        >>> block = lambda: nn.Sequential(ConvWS(8, 8, 3, padding=1), BCN(8), nn.ReLU())
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), block(), block())
        >>> save_memory(model, 'strong', blocks=['1', '2'])
        ['1', '2']
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f'expected an nn.Module, got {type(model).__name__}')
    found = {}
    if level is not None:
        check_choice('level', level, tuple(LEVELS))
        found = _repeated_blocks(model) if blocks is None else _named_blocks(model, blocks)
        if not found:
            raise ValueError(f'{type(model).__name__} has no repeated blocks of several convolutions; name the modules '
                             'that should save memory in the argument blocks')
    for module in model.modules():
        _release(module)
    for block in found.values():
        block.forward = _Saving(block, level)
    for module in model.modules():
        if type(module).forward is nn.Sequential.forward and 'forward' not in vars(module) \
                and any(map(_saves, module)):
            module.forward = _SavingSequence(module, level)
    return list(found)


def _release(module: nn.Module) -> None:
    """Restore a module's own forward pass."""
    saving = vars(module).get('forward')
    if isinstance(saving, _Saving):
        del module.forward
        if saving.before is not None:
            module.forward = saving.before


def _repeated_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Elements of containers whose class occurs several times in some container; the innermost ones if nested."""
    kinds, elements = set(), {}
    for name, container in model.named_modules():
        if isinstance(container, (nn.Sequential, nn.ModuleList)):
            candidates = {f'{name}.{key}'.lstrip('.'): child for key, child in container.named_children()
                          if not isinstance(child, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
                          and sum(isinstance(layer, (_ConvNd, nn.Linear)) for layer in child.modules()) > 1
                          and any(isinstance(layer, _ConvNd) for layer in child.modules())}
            elements |= candidates
            kinds |= {kind for kind, count in Counter(map(type, candidates.values())).items() if count > 1}
    blocks = {name: block for name, block in elements.items() if type(block) in kinds}
    outer = {name for name in blocks if any(other.startswith(f'{name}.') for other in blocks)}
    return {name: block for name, block in blocks.items() if name not in outer}


def _named_blocks(model: nn.Module, given: str | nn.Module | Iterable[str | nn.Module]) -> dict[str, nn.Module]:
    names = {module: name for name, module in model.named_modules()}
    blocks = {}
    for one in [given] if isinstance(given, (str, nn.Module)) else given:
        matching = {name: module for module, name in names.items()
                    if module is one or isinstance(one, str) and fnmatchcase(name, one)}
        if not matching:
            close = difflib.get_close_matches(str(one), names.values(), 3) or list(names.values())[1:4]
            raise ValueError(f'the network has no module {one if isinstance(one, str) else type(one).__name__!r}; '
                             f'there are {", ".join(close)}, ...')
        blocks |= matching
    return blocks


class _Saving:
    """The forward pass of a block as a segment. It is stored in the instance's ``forward``, so that modules do not
    change, and copies and pickles of the network include it."""

    def __init__(self, module: nn.Module, level: str):
        self.module, self.level = module, level
        self.before = vars(module).get('forward')  # if other code has replaced it

    def __call__(self, *args, **kwargs) -> object:
        return _run(self.forward, [self.module], self.level, *args, **kwargs)

    @property
    def forward(self) -> Callable:
        """The module's own forward pass."""
        return self.before or type(self.module).forward.__get__(self.module)


class _SavingSequence(_Saving):
    """The forward pass of an ``nn.Sequential`` with several blocks per segment."""

    def __call__(self, input: object) -> object:  # named as in torch
        for modules in self._groups():
            function = modules[0] if len(modules) == 1 else lambda x, modules=modules: reduce(_call, modules, x)
            input = _run(function, modules, self.level, input) if len(modules) > 1 else function(input)
        return input

    def _groups(self) -> Iterator[list[nn.Module]]:
        """The modules in order, with up to ``BLOCKS`` consecutive blocks in one group."""
        group = []
        for module in self.module:
            if group and not (len(group) < BLOCKS and _saves(group[-1]) and _saves(module)):
                yield group
                group = []
            group.append(module)
        yield group


def _call(x: object, module: nn.Module) -> object:
    return module(x)


def _saves(module: nn.Module) -> bool:
    return type(vars(module).get('forward')) is _Saving


def _run(function: Callable, modules: list[nn.Module], level: str, *args, **kwargs) -> object:
    """Call the function, in a segment if a backward pass may follow."""
    if needs_plain_operations() or not torch.is_grad_enabled() or not any(module.training for module in modules):
        return function(*args, **kwargs)
    if torch.compiler.is_compiling():
        return torch.compiler.disable(_run)(function, modules, level, *args, **kwargs)
    if inside_segment():
        return function(*args, **kwargs)
    given = tensors_in((args, kwargs))
    parameters = chain.from_iterable(module.parameters() for module in modules)
    if not given or not any(tensor.requires_grad for tensor in chain(given, parameters)):
        return function(*args, **kwargs)
    return Segment(function, modules, LEVELS[level]).run(args, kwargs)
