"""The test pipeline and test set of a config, for images without labels."""
import copy
import re
from pathlib import Path

from mmengine.config import Config

from wsbcn_mmseg.runtime.errors import UsageError


def loading_step(cfg: Config, tta: bool = False) -> dict:
    """The step of the config's test pipeline that reads an image file.

    Raises:
        UsageError: If there is no such step.
    """
    pipeline = _pipeline(cfg, tta)
    first = pipeline[0] if pipeline else {}
    if not re.match(r'(\w+\.)?Load\w*Image', str(first.get('type'))):
        raise UsageError('the config has no test pipeline that begins with LoadImageFromFile')
    return copy.deepcopy(first)


def preprocess_steps(cfg: Config, tta: bool = False) -> list[dict]:
    """The config's test pipeline, for an image that is already loaded and has no labels.

    Raises:
        UsageError: If the config has no test pipeline.
    """
    first, steps = loading_step(cfg, tta), copy.deepcopy(list(_pipeline(cfg, tta)[1:]))
    for step in steps:
        if 'transforms' in step:
            step.transforms = [kept for branch in step.transforms if (kept := _without_labels(branch))]
    return [dict(type='LoadImageFromNDArray', to_float32=first.get('to_float32', False)), *_without_labels(steps)]


def _pipeline(cfg: Config, tta: bool) -> list[dict]:
    return (cfg.get('tta_pipeline') if tta else test_set(cfg).get('pipeline') or cfg.get('test_pipeline')) or []


def test_set(cfg: Config) -> dict:
    """The config's test data set, empty if there is none."""
    return (cfg.get('test_dataloader') or {}).get('dataset') or {}


def images_of_test_set(cfg: Config) -> list[Path]:
    """The existing image files of the config's test set."""
    dataset = test_set(cfg)
    folder = Path(dataset.get('data_root') or '.', (dataset.get('data_prefix') or {}).get('img_path') or 'nowhere')
    listed = Path(dataset.get('data_root') or '.', dataset.get('ann_file') or 'nowhere')
    if not folder.is_dir():
        return []
    names = set(listed.read_text().split()) if listed.is_file() else None
    return [path for path in sorted(folder.iterdir()) if names is None or path.stem in names]


def _without_labels(steps: list) -> list:
    return [step for step in steps if step.get('type') != 'LoadAnnotations']
