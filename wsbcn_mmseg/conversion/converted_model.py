"""A model that is converted as soon as it is built: before optimizers and wrappers for several GPUs see it."""
from collections import Counter

from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn

from .convert import Conversion


@MODELS.register_module(name='ConvertedModel')
def build_converted_model(conversion: dict, **model) -> nn.Module:
    """Build a model of an OpenMMLab project and convert its layers; :func:`wsbcn_mmseg.apply_bcn_ws` writes it into
    configs.

    Args:
        conversion: ``type`` of the model, and ``norm``, ``ws``, ``include``, ``exclude`` as for
            :func:`wsbcn_mmseg.convert_model`. Convolutions that are ConvWS by their config though no norm follows
            them become plain ones.
        model: All else that the model's own config says.

    Returns:
        The model itself, an instance of the class that ``conversion.type`` names.
    """
    settings = dict(conversion)
    built = MODELS.build(dict(model, type=settings.pop('type')))
    report = Conversion(built, **settings, undo=True).run(None)
    layers = Counter(type(module).__name__ for module in built.modules())
    print_log(f'The network has {layers["BCN"]} BCN and {layers["ConvWS"]} ConvWS; after building: {report}',
              logger='current')
    return built
