"""A model that is converted right after it is built, before optimizers and wrappers for several GPUs are created."""
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
            :func:`wsbcn_mmseg.convert_model`. If the config sets ConvWS for convolutions that no norm follows, they
            become plain convolutions. With ``preserve=True``, ``init_weights()`` initializes the unconverted model as
            in its config, loads ``checkpoint`` into it if there is one, converts it, and uses the resulting weights.
            Layers of heads for another number of classes keep their initial weights.
        model: All other settings of the model's config.

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
