"""Test the conversion with the networks that MMSegmentation ships."""
import functools
import re
from dataclasses import dataclass
from pathlib import Path

import mmseg
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsbcn_mmseg.conversion import ConversionError, apply_bcn_ws
from wsbcn_mmseg.conversion.made_up_inputs import made_up_sample
from wsbcn_mmseg.layers import BCN
from wsbcn_mmseg.layers.conv_ws import WeightStandardized
from wsbcn_mmseg.runtime.errors import describe

CONFIGS = Path(mmseg.__file__).parent / '.mim' / 'configs'
SMALL = ('r18', 'r50', 'hr18s', 'b0', 'tiny', '-t_', 's16', 'small', '-s_', 's12', 'base', 'b16')  # first choices
NO_NORMS = 'has no BN, SyncBN or GN'


@dataclass
class Result:
    """The result for one family.

    Attributes:
        family: Path of a config in the configs folder of MMSegmentation.
        outcome: ``'ok'``, or the reason for the failure.
        bcn, conv_ws, plain_convs: Numbers of layers after the conversion.
    """
    family: str
    outcome: str
    bcn: int = 0
    conv_ws: int = 0
    plain_convs: int = 0


@functools.cache
def families() -> tuple[str, ...]:
    """One config per file of ``_base_/models``, and a small one per folder."""
    models = sorted((CONFIGS / '_base_' / 'models').glob('*.py'))
    folders = [sorted(folder.glob('*.py')) for folder in sorted(CONFIGS.iterdir()) if folder.name != '_base_']
    chosen = [min(files, key=_rank) for files in folders if files]
    return tuple(str(path.relative_to(CONFIGS)) for path in models + chosen)


def _rank(path: Path) -> int:
    """Position of a config in the order of ``SMALL``."""
    return next((rank for rank, mark in enumerate(SMALL) if mark in path.stem), len(SMALL))


def check(family: str, size: int = 128) -> Result:
    """Convert a family by :func:`apply_bcn_ws`, train it for one step on one image, and evaluate it on one image.

    Args:
        family: One of :func:`families`.
        size: Side of the image, in pixels. Families whose unconverted network does not run on it get their own crop
            size. Defaults to 128.
    """
    init_default_scope('mmseg')
    torch.manual_seed(0)
    unconverted = None
    for side in (size, None):
        try:
            return _converted(family, side)
        except Exception as error:  # networks of others may raise any error
            failure = _failure_unconverted(family, side)
            if failure is None:
                return Result(family, describe(error))
            unconverted = unconverted or failure
    return Result(family, f'fails unconverted too: {describe(unconverted)}')


def _converted(family: str, size: int | None) -> Result:
    cfg = _small_config(family, size)
    try:
        model = MODELS.build(apply_bcn_ws(cfg, log=None).model)
    except ConversionError as error:
        if 'nothing to convert' in str(error):
            return Result(family, NO_NORMS)
        raise
    result = _counted(family, model)
    if result.outcome == 'ok':
        _train_and_evaluate(model, batch_size=1)
    return result


def _small_config(family: str, size: int | None) -> Config:
    cfg = Config.fromfile(CONFIGS / family)
    backbone = cfg.model.get('backbone', {})
    if backbone.get('depth') == 101:
        backbone.depth = 50
    if size and 'img_size' in backbone:  # transformers with one position embedding per patch
        backbone.img_size = size, size
    _remove_weights(cfg.model)
    preprocessor = cfg.model.setdefault('data_preprocessor', dict(type='SegDataPreProcessor', bgr_to_rgb=True))
    size = size or backbone.get('img_size', 512) if size or not preprocessor.get('size') else preprocessor.size
    preprocessor.size = (size, size) if isinstance(size, int) else tuple(size)
    cfg.model.test_cfg = dict(mode='whole')  # some base files have sliding windows that other configs complete
    return cfg


def _remove_weights(node) -> None:
    if isinstance(node, dict):
        node.pop('pretrained', None)
        if 'checkpoint' in (node.get('init_cfg') or {}):
            node.pop('init_cfg')
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ():
        _remove_weights(value)


def _counted(family: str, model: nn.Module) -> Result:
    layers = list(model.modules())
    inner = {layer.bn for layer in layers if isinstance(layer, BCN)}
    left = [type(layer).__name__ for layer in layers
            if isinstance(layer, (_BatchNorm, nn.GroupNorm)) and not isinstance(layer, BCN) and layer not in inner]
    bcn = len(inner)
    standardized = sum(isinstance(layer, WeightStandardized) for layer in layers)
    plain = sum(isinstance(layer, nn.modules.conv._ConvNd) for layer in layers) - standardized
    outcome = f'{len(left)} {left[0]} left' if left else 'ok' if bcn else NO_NORMS
    return Result(family, outcome, bcn, standardized, plain)


def _failure_unconverted(family: str, size: int | None) -> Exception | None:
    try:
        model = MODELS.build(_small_config(family, size).model)
        _train_and_evaluate(revert_sync_batchnorm(model), batch_size=2)
    except Exception as error:  # networks of others may raise any error
        return error
    return None


def _train_and_evaluate(model: nn.Module, batch_size: int) -> None:
    model.init_weights()
    batch = [_sample(model) for _ in range(batch_size)]
    data = dict(inputs=[image for image, _ in batch], data_samples=[sample for _, sample in batch])
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3))
    losses = model.train().train_step(data, optimizer)
    if not all(torch.isfinite(torch.as_tensor(value)).all() for value in losses.values()):
        raise ValueError('the loss is not finite')
    with torch.no_grad():
        (prediction, *_) = model.eval().test_step(data)
    if not all(value.data.isfinite().all() for value in prediction.values() if isinstance(value, PixelData)):
        raise ValueError('the prediction is not finite')


def _sample(model: nn.Module) -> tuple[torch.Tensor, SegDataSample]:
    mean, size = getattr(model.data_preprocessor, 'mean', None), tuple(model.data_preprocessor.size)
    channels = 3 if mean is None else mean.numel()
    image = torch.randint(0, 256, (channels, *size), dtype=torch.uint8)
    return image, made_up_sample(model, size, torch.randint(0, 2, (1, *size)))


def read_table(path: Path) -> list[Result]:
    """The results in a table written by :func:`table`; empty if there is no file."""
    if not path.is_file():
        return []
    rows = re.findall(r'^\| `(.+?)` \| (\d*) \| (\d*) \| (.*) \|$', path.read_text(), re.M)
    return [Result(family, outcome, int(bcn or 0), int(conv_ws or 0)) for family, bcn, conv_ws, outcome in rows]


def table(results: list[Result], size: int) -> str:
    """The results in Markdown."""
    counted = [result for result in results if result.outcome != NO_NORMS]
    ok = [result for result in counted if result.outcome == 'ok']
    others = [result for result in counted if result.outcome.startswith('fails unconverted')]
    rows = [f'| `{result.family}` | {result.bcn or ""} | {result.conv_ws or ""} | {result.outcome} |'
            for result in results]
    share = len(ok) / max(1, len(counted) - len(others))
    return '\n'.join([
        '# BCN and WS in the networks of MMSegmentation', '',
        f'Written by `python tools/zoo_check.py` with MMSegmentation {mmseg.__version__} and torch '
        f'{torch.__version__.split("+")[0]}. Each family (one config per file of `_base_/models`, and one per folder) '
        f'is converted as by `tools/train.py CONFIG --bcn-ws`, trained for one step on one image of {size}×{size} and '
        'evaluated on it; no BatchNorm, SyncBatchNorm or GroupNorm may be left. ResNet-101 is cut to ResNet-50; '
        'families that cannot take such an image get one of their own crop size.', '',
        f'**{len(ok)} of {len(counted) - len(others)} families with such norms pass ({share:.0%})**; '
        f'{len(others)} more do not run here unconverted either, for the reason given; '
        f'{len(results) - len(counted)} have none of these norms.', '',
        '| family | BCN | ConvWS | result |', '|---|---|---|---|', *rows, ''])
