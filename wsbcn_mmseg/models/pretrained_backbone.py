"""Initialize a backbone from a classification checkpoint, and log how many tensors were loaded."""
import re
from collections.abc import Iterable

from mmengine.logging import print_log
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

from wsbcn_mmseg.runtime.checkpoint import read_checkpoint, weights_in
from wsbcn_mmseg.runtime.fit import Fit, load_and_compare
from wsbcn_mmseg.runtime.saved_config import saved_settings

# Layers after the backbone in classifiers whose backbone has no prefix
_CLASSIFIER = ('fc.', 'head.', 'classifier.')


@WEIGHT_INITIALIZERS.register_module()
class PretrainedBackbone:
    """Initialize a backbone from a checkpoint of a classifier, a segmentor or the backbone itself.

    Like ``dict(type='Pretrained', checkpoint=..., prefix='backbone.')`` of MMEngine, but reads the file with
    ``weights_only=True``, accepts bare backbones too, logs how many tensors were loaded, and raises an error if the
    file does not fit the backbone, which MMEngine would only log.

    Args:
        checkpoint: Path of the file.
        rename: Pairs of a regular expression and a replacement, applied one after the other to each name in the file;
            ``{norm}`` in a replacement stands for the name of norms in the file (``bn``, ``gn``, ``bcn``).

    Raises:
        ValueError: If a tensor of the backbone is missing in the file or has another shape, if the file has additional
            tensors, or if the config in the file says that it was trained with Weight Standardization and the backbone
            has none, or the reverse.

    Examples:
        >>> init_cfg = dict(type='PretrainedBackbone', checkpoint='resnet101_bcn_ws_in1k.pth')
    """

    def __init__(self, checkpoint: str, rename: Iterable[tuple[str, str]] = ()):
        self.checkpoint, self.rename = checkpoint, tuple(rename)

    def __call__(self, module: nn.Module) -> None:
        fit = self.compare(module)
        fit.require_all()
        for child in module.modules():
            child.is_init = True  # otherwise MMEngine would initialize ConvModules again
        print_log(f'Backbone: loaded {len(module.state_dict())} tensors from {self.checkpoint}', logger='current')

    def compare(self, module: nn.Module) -> Fit:
        """Load the tensors that fit, and return how the others differ."""
        checkpoint = read_checkpoint(self.checkpoint)
        weights = weights_in(checkpoint, self.checkpoint)
        if any(name.startswith('backbone.') for name in weights):
            weights = {name.removeprefix('backbone.'): value for name, value in weights.items()
                       if name.startswith('backbone.')}
        weights = {name: value for name, value in weights.items() if not name.startswith(_CLASSIFIER)}
        weights = self._renamed(weights)
        return load_and_compare(module, weights, self.checkpoint, saved_settings(checkpoint), 'backbone')

    def _renamed(self, weights: dict) -> dict:
        norm = next((match[1] for name in weights if (match := re.match(r'([a-z]+)1\.', name)) and match[1] != 'conv'),
                    'bn')
        renamed = {}
        for name, value in weights.items():
            for pattern, replacement in self.rename:
                name = re.sub(pattern, replacement.replace('{norm}', norm), name)
            renamed[name] = value
        return renamed
