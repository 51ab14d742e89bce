"""Find the blocks of a network, and let them save memory in training."""
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

BLOCKS = 3  # per segment, which keeps its input and output
DEAR = 512  # multiplications for one value


def _is_dear(weight: Tensor) -> bool:
    """Whether the output of a convolution with this kernel costs much for its size. That of expanding 1x1 convolutions
    and depth-wise ones does not, unless they are wide."""
    multiplications = weight.shape[1:].numel()
    return multiplications >= weight.shape[0] or multiplications >= DEAR


LEVELS = {'light': lambda weight: True, 'strong': _is_dear}  # whether the output with such a kernel is kept


def save_memory(model: nn.Module, level: str | None = 'light',
                blocks: str | nn.Module | Iterable[str | nn.Module] | None = None) -> list[str]:
    """From here on, the blocks of a network save activation memory in training.

    What a block keeps for the backward pass shrinks to its input, its output, and the outputs of its convolutions;
    norms, activations and additions are computed again. Convolutions are not, except, at level ``'strong'``, those
    whose output is large and cheap: expanding 1x1 convolutions of less than 512 input channels, and depth-wise ones. Of
    three blocks that follow each other in an ``nn.Sequential``, only the first input and the last output are kept.

    Gradients are those of the plain network to rounding. Running statistics and their counters, BCN's and BatchNorm's,
    move once. Dropout draws the same masks. Modules, parameters and ``state_dict`` stay as they are; copies and pickles
    of the network save memory too. In evaluation, without gradients and while a network is traced or exported, blocks
    run as before. ``torch.compile`` leaves the blocks to eager execution, with a graph break at each;
    ``fullgraph=True`` is not possible.

    Args:
        model: The network. Another call replaces what the call before has set.
        level: ``'light'`` or ``'strong'``; None ends the saving. Defaults to ``'light'``.
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
            raise ValueError(f'{type(model).__name__} has no repeated blocks of several convolutions; name its parts '
                             'that are to save memory by the argument blocks')
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
    """Give a module its own forward pass back."""
    saving = vars(module).get('forward')
    if isinstance(saving, _Saving):
        del module.forward
        if saving.before is not None:
            module.forward = saving.before


def _repeated_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Elements of containers, of a class that some container has several times; the innermost, where they nest."""
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
    """The forward pass of a block as a segment. It stands in the ``forward`` of the instance: the network keeps its
    modules, and is copied and pickled with it."""

    def __init__(self, module: nn.Module, level: str):
        self.module, self.level = module, level
        self.before = vars(module).get('forward')  # of others that have replaced it

    def __call__(self, *args, **kwargs) -> object:
        return _run(self.forward, [self.module], self.level, *args, **kwargs)

    @property
    def forward(self) -> Callable:
        """The module's own."""
        return self.before or type(self.module).forward.__get__(self.module)


class _SavingSequence(_Saving):
    """The forward pass of an ``nn.Sequential`` with several blocks to a segment."""

    def __call__(self, input: object) -> object:  # named as in torch
        for modules in self._groups():
            function = modules[0] if len(modules) == 1 else lambda x, modules=modules: reduce(_call, modules, x)
            input = _run(function, modules, self.level, input) if len(modules) > 1 else function(input)
        return input

    def _groups(self) -> Iterator[list[nn.Module]]:
        """The modules in order; neighboring blocks together, as many as the level has in a segment."""
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
    """The function's output, in a segment where a backward pass may follow."""
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
