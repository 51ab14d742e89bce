"""Fuse BCN layers with the ReLU that follows them."""
from torch import Tensor, nn

from wsbcn_mmseg.layers import BCN
from wsbcn_mmseg.layers.fused_relu import ReLUUnlessFused

from .trial_run import TrialRun


def fuse_relu(model: nn.Module, example_inputs: Tensor | tuple | dict | None = None) -> list[str]:
    """Let BCN layers apply the ``nn.ReLU`` that follows them in the same pass over the activation.

    Results stay the same, bitwise on the CPU. Modules, their names and the ``state_dict`` do not change. A BCN layer
    with forward hooks does not apply ReLU, because its hooks must get its own output. :func:`unfuse_relu` undoes the
    change.

    The network is run in evaluation and in training mode to find the layers whose output goes only to ReLU. If its
    control flow depends on the input, give inputs that cover all paths.

    Args:
        model: The network; it is changed in place.
        example_inputs: Input of the network: a tensor, a tuple of positional arguments or a dict of keyword
            arguments. Defaults to None: random images, as in :func:`convert_model`.

    Returns:
        The names of the layers that now apply ReLU.

    Raises:
        ValueError: If ``example_inputs`` is None and the network does not run on random images.
        Exception: Any error that ``model`` raises for the given ``example_inputs``.

    Examples:
        >>> fuse_relu(nn.Sequential(nn.Conv2d(3, 8, 3), BCN(8), nn.ReLU()))
        ['1']
    """
    unfuse_relu(model)
    norms = {module: name for name, module in model.named_modules() if isinstance(module, BCN)}
    relus = [module for module in model.modules() if type(module) is nn.ReLU]
    if not norms or not relus:
        return []
    flow = TrialRun(model, example_inputs).run(list(norms), relus)
    fused = {norm: name for norm, name in norms.items() if flow.targets.get(norm) and norm not in flow.read_elsewhere
             and not any(relu._forward_pre_hooks for relu in flow.targets[norm])}
    for norm in fused:
        norm.fused_relu = True
        for relu in flow.targets[norm]:
            relu.__class__ = ReLUUnlessFused
    return list(fused.values())


def unfuse_relu(model: nn.Module) -> None:
    """Undo :func:`fuse_relu`: the ``nn.ReLU`` modules apply ReLU again."""
    for module in model.modules():
        if isinstance(module, BCN):
            module.fused_relu = False
        elif type(module) is ReLUUnlessFused:
            module.__class__ = nn.ReLU
