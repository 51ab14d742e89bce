"""Random inputs for networks without an example, including the labels that OpenMMLab's models need."""
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

SIDES = (64, 224, 32, 28, 128, 299, 16, 8, 256, 512)  # the first size that the network accepts is used
CLIP = 8  # frames
PROJECTS = ('mmseg', 'mmdet', 'mmpretrain', 'mmaction', 'mmengine')


def made_up_calls(model: nn.Module, training: bool, sides: tuple[int, ...] = SIDES) -> Iterator[Callable[[], object]]:
    """Calls of ``model`` on one random image (two in training), one call per image size and number of channels.

    Args:
        model: Any network. In training, OpenMMLab's models also compute their losses on made-up labels.
        training: Whether the network is in training mode.
        sides: Sides of the images, in pixels.
    """
    for images in _images(model, 2 if training else 1, sides):
        if project_of(model) is None:
            yield lambda images=images: model(images)
        else:
            samples = [made_up_sample(model, images.shape[-2:]).to(images.device) for _ in images]
            mode = 'loss' if training else 'tensor'
            yield lambda images=images, samples=samples, mode=mode: model(images, samples, mode=mode)


def project_of(model: nn.Module) -> str | None:
    """The OpenMMLab project of a model with ``forward(mode=...)``, such as a segmentor or detector."""
    packages = [(base.__module__.split('.')[0], base.__name__) for base in type(model).__mro__]
    if ('mmengine', 'BaseModel') not in packages:
        return None
    return next(package for package, _ in packages if package in PROJECTS)


def _images(model: nn.Module, batch_size: int, sides: tuple[int, ...]) -> Iterator[Tensor]:
    """Random images of shape (N, C, *), where C is the number of input channels of the first convolution, or 3. Rows of
    shape (N, features) if the first layer is linear. Clips for MMAction2 have shape (N, T, C, H, W) or
    (N, 1, C, T, H, W)."""
    first = next((module for module in model.modules() if isinstance(module, (_ConvNd, nn.Linear))), None)
    if first is None:
        return
    like = dict(dtype=first.weight.dtype, device=first.weight.device)
    if isinstance(first, nn.Linear):
        yield torch.randn(batch_size, first.in_features, **like)
    channels, project = getattr(first, 'in_channels', 3), project_of(model)
    preprocessor = getattr(model, 'data_preprocessor', None)
    mean, crop_size = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'size', None)
    likely = (channels, 3) if project is None else (3, channels)
    if mean is not None:
        likely = (mean.numel(), *likely) if mean.numel() > 1 else (channels, 3)  # one mean fits any number of channels
    dimensions = first.weight.dim() - 2 if isinstance(first, _ConvNd) else 2
    sizes = [(side, side) for side in sides]
    if crop_size is not None:  # the only size that some transformers accept
        sizes.insert(1, tuple(crop_size))
    for size, channels in itertools.product(sizes, dict.fromkeys(likely)):
        shape = [channels, *[CLIP] * (dimensions == 3), *size[:dimensions]]
        if project == 'mmaction':
            shape = [1 if dimensions == 3 else CLIP, *shape]
        yield torch.randn(batch_size, *shape, **like)


def made_up_sample(model: nn.Module, size: tuple[int, int], labels: Tensor | None = None):
    """A data sample of OpenMMLab for an image of ``size``: one object that fills it, or for segmentors ``labels`` of
    shape (1, H, W), class 0 everywhere by default."""
    project, (height, width) = project_of(model), size
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0),
                num_clips=1, flip=False, flip_direction=None, img_path='', padding_size=[0] * 4)
    if project == 'mmdet':
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks
        from mmengine.structures import InstanceData
        objects = InstanceData(bboxes=torch.tensor([[0.0, 0.0, width, height]]), labels=torch.zeros(1).long(),
                               masks=BitmapMasks(np.ones((1, height, width), np.uint8), height, width))
        ignored = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
        return DetDataSample(metainfo=meta, gt_instances=objects, ignored_instances=ignored)
    if project == 'mmpretrain':
        from mmpretrain.structures import DataSample
        return DataSample(metainfo=meta).set_gt_label(0)
    if project == 'mmaction':
        from mmaction.structures import ActionDataSample
        return ActionDataSample(metainfo=meta).set_gt_label(0)
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    labels = torch.zeros(1, height, width).long() if labels is None else labels
    return SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=labels), gt_edge_map=PixelData(data=labels),
                         gt_depth_map=PixelData(data=labels.float()))
