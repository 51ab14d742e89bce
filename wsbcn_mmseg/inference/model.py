"""Build a segmentor and load its checkpoint."""
import copy
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmseg.registry import MODELS
from torch import nn

from wsbcn_mmseg.datasets.voc_aug import voc_palette
from wsbcn_mmseg.runtime.checkpoint import read_checkpoint
from wsbcn_mmseg.runtime.checks import num_classes
from wsbcn_mmseg.runtime.errors import UsageError
from wsbcn_mmseg.runtime.fit import load_checkpoint
from wsbcn_mmseg.runtime.launch import load_config

from .pipeline import test_set


def load_segmentor(config: str | Path | Config, checkpoint: str | Path, device: str = 'cpu',
                   options: dict | None = None) -> nn.Module:
    """Build a segmentor and load trained weights.

    Like MMSegmentation's ``init_model``, but reads the checkpoint with ``weights_only=True`` and raises an error if it
    does not fit the network.

    Args:
        config: Path of a config file, or a config.
        checkpoint: A file saved by a training run.
        device: A PyTorch device or its name. Defaults to the CPU.
        options: Settings that override the config. Defaults to None.

    Returns:
        The network in evaluation mode, with its config as ``cfg`` and ``dict(classes=..., palette=...)`` as
        ``dataset_meta``.

    Raises:
        UsageError: If a file is missing or unreadable, or config and checkpoint do not fit.
    """
    cfg = copy.deepcopy(config) if isinstance(config, Config) else load_config(str(config), options, None, 'none')
    if not cfg.get('model'):
        raise UsageError(f'{config} describes no model')
    if '://' in str(checkpoint):
        raise UsageError(f'{checkpoint} is not on this machine; download it first')
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    description = copy.deepcopy(cfg.model)
    for part in (description, description.get('backbone') or {}):
        part.pop('init_cfg', None)  # the checkpoint contains all weights
    try:
        model = MODELS.build(description)
    except KeyError as error:  # a type is not registered
        raise UsageError(f'{config}: {str(error).strip(chr(34)).splitlines()[0]}') from error
    saved = read_checkpoint(checkpoint)
    load_checkpoint(model, saved, checkpoint).require_all()
    if isinstance(model.decode_head, nn.ModuleList):  # MMSegmentation reads it from the cascade, not from its last head
        model.decode_head.threshold = model.decode_head[-1].threshold
    model.cfg, model.dataset_meta = cfg, _dataset_meta(cfg, checkpoint, saved.get('meta'))
    model.to(_device(device))
    model.eval()
    return model


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a PyTorch without CUDA
        raise UsageError(f'there is no device {name!r} here; choose another, such as cpu') from error
    return device


def _dataset_meta(cfg: Config, checkpoint: str | Path, meta: object) -> dict:
    """Names and colors of the classes, from the checkpoint or the config's data set; else numbers and VOC's colors."""
    dataset = test_set(cfg)
    with DATASETS.switch_scope_and_registry(None) as registry:
        dataset_type = registry.get(dataset['type']) if 'type' in dataset else None
    known = dict(getattr(dataset_type, 'METAINFO', {})) | dict(dataset.get('metainfo') or {})
    meta = meta.get('dataset_meta') if isinstance(meta, dict) else None
    known |= {key: value for key, value in (meta if isinstance(meta, dict) else {}).items() if value}
    count = max(num_classes(cfg) or 2, 2)
    classes, palette = list(known.get('classes') or map(str, range(count))), list(known.get('palette') or [])
    if count == 2 and len(classes) == 1:  # a threshold decides whether this class is present
        classes, palette = ['background', *classes], [[0, 0, 0], *palette] if palette else []
    if len(classes) != count:
        raise UsageError(f'the model has {count} classes, but {checkpoint} or the config names {len(classes)}')
    palette = palette if len(palette) >= count else np.reshape(voc_palette(), (-1, 3))[:count].tolist()
    return dict(classes=classes, palette=[list(map(int, color)) for color in palette])
