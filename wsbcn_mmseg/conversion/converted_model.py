"""A model that is converted as soon as it is built: before optimizers and wrappers for several GPUs see it."""
import copy
from collections import Counter
from functools import partial

from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn

from wsbcn_mmseg.runtime.fit import load_file

from .convert import Conversion


@MODELS.register_module(name='ConvertedModel')
def build_converted_model(conversion: dict, **model) -> nn.Module:
    """Build a model of an OpenMMLab project and convert its layers; :func:`wsbcn_mmseg.apply_bcn_ws` writes it into
    configs.

    Args:
        conversion: ``type`` of the model, and ``norm``, ``ws``, ``include``, ``exclude`` as for
            :func:`wsbcn_mmseg.convert_model`. Convolutions that are ConvWS by their config though no norm follows
            them become plain ones. With ``preserve=True``, ``init_weights()`` initializes the unconverted model as its
            config says, loads ``checkpoint`` into it if there is one, and takes over what converting it gives. Heads of
            another number of classes start anew.
        model: All else that the model's own config says.

    Returns:
        The model itself, an instance of the class that ``conversion.type`` names.
    """
    settings = dict(conversion)
    checkpoint = settings.pop('checkpoint', None)
    unconverted = dict(model, type=settings.pop('type'))
    built = MODELS.build(copy.deepcopy(unconverted))
    report = built.conversion_report = Conversion(built, **settings, undo=True).run(None)
    layers = Counter(type(module).__name__.replace('Adaptive', '') for module in built.modules())
    print_log(f'The network has {layers["BCN"]} BCN and {layers["ConvWS"]} ConvWS; after building: {report}',
              logger='current')
    if settings.get('preserve'):
        built.init_weights = partial(_init_preserving, built, unconverted, settings, checkpoint)
    return built


def _init_preserving(model: nn.Module, unconverted: dict, settings: dict, checkpoint: str | None) -> None:
    ordinary = MODELS.build(copy.deepcopy(unconverted))
    ordinary.init_weights()
    if checkpoint:
        for remark in load_file(ordinary, checkpoint).require_most():
            print_log(remark, logger='current')
    Conversion(ordinary, **settings).run(None)
    model.load_state_dict(ordinary.state_dict())
