"""Backbone weights from a classification checkpoint, with a count of what was loaded."""
import re
from collections.abc import Iterable

from mmengine.logging import print_log
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

from wsbcn_mmseg.runtime.checkpoint import read_weights

# Layers after the backbone, in classifiers whose backbone has no prefix
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
        ValueError: If a tensor of the backbone is missing in the file or has another shape, or the file has others.

    Examples:
        >>> init_cfg = dict(type='PretrainedBackbone', checkpoint='resnet101_bcn_ws_in1k.pth')
    """

    def __init__(self, checkpoint: str, rename: Iterable[tuple[str, str]] = ()):
        self.checkpoint, self.rename = checkpoint, tuple(rename)

    def __call__(self, module: nn.Module) -> None:
        weights = read_weights(self.checkpoint)
        if any(name.startswith('backbone.') for name in weights):
            weights = {name.removeprefix('backbone.'): value for name, value in weights.items()
                       if name.startswith('backbone.')}
        weights = {name: value for name, value in weights.items() if not name.startswith(_CLASSIFIER)}
        weights = self._renamed(weights)
        mismatch = f'{self.checkpoint} was trained with another network or normalization: '
        try:
            problems = module.load_state_dict(weights, strict=False)
        except RuntimeError as error:  # shapes differ; the first line says no more than that
            raise ValueError(mismatch + str(error).splitlines()[1].strip()) from error
        missing = [name for name in problems.missing_keys if not name.endswith('num_batches_tracked')]
        if missing or problems.unexpected_keys:
            raise ValueError(mismatch + f'{_some(missing)} missing, {_some(problems.unexpected_keys)} unexpected')
        for child in module.modules():
            child.is_init = True  # or MMEngine would initialize ConvModules anew, after this
        print_log(f'Backbone: loaded {len(weights)} tensors from {self.checkpoint}', logger='current')

    def _renamed(self, weights: dict) -> dict:
        norm = next((match[1] for name in weights if (match := re.match(r'([a-z]+)1\.', name)) and match[1] != 'conv'),
                    'bn')
        renamed = {}
        for name, value in weights.items():
            for pattern, replacement in self.rename:
                name = re.sub(pattern, replacement.replace('{norm}', norm), name)
            renamed[name] = value
        return renamed


def _some(names: list[str]) -> str:
    shown = f' ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})' if names else ''
    return f'{len(names)} tensors{shown}'
