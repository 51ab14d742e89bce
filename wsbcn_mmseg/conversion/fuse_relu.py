"""Which BCN layers feed ReLU and nothing else, and may apply it themselves."""
from torch import Tensor, nn

from wsbcn_mmseg.layers import BCN
from wsbcn_mmseg.layers.fused_relu import ReLUUnlessFused

from .trial_run import TrialRun


def fuse_relu(model: nn.Module, example_inputs: Tensor | tuple | dict | None = None) -> list[str]:
    """Let BCN layers apply the ``nn.ReLU`` that follows them, in the same pass; its own pass is left out.

    Results stay the same, bit for bit on the CPU. Modules, their names and the ``state_dict`` stay as they are. A layer
    with forward hooks, which must see its own output, leaves ReLU to the module. :func:`unfuse_relu` takes it back.

    Which layers feed ReLU alone is seen by running the network, in evaluation and in training mode: a network whose
    path depends on its input needs inputs that take all paths.

    Args:
        model: The network; it is changed in place.
        example_inputs: What the network is run on: a tensor, a tuple of positional or a dict of keyword arguments.
            Defaults to None: random images, as :func:`convert_model` makes them up.

    Returns:
        The names of the layers that apply ReLU now.

    Raises:
        ValueError: If ``example_inputs`` is None and the network runs on nothing that could be made up for it.
        Exception: Whatever ``model`` raises for the given ``example_inputs``.

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
    """Leave ReLU to its modules again."""
    for module in model.modules():
        if isinstance(module, BCN):
            module.fused_relu = False
        elif type(module) is ReLUUnlessFused:
            module.__class__ = nn.ReLU
