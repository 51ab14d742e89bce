"""Conversion of the checkpoints that the paper's authors published, for the networks of this package.

The authors' networks are the same as ours except for the names of layers and one difference: their layers divide
kernels by other standard deviations than Eq. 7. There are two generations of layers:

==========================================  =============================  ====================
repository                                  deviation                      norms
==========================================  =============================  ====================
joe-siyuan-qiao/pytorch-classification      unbiased deviation + eps       GN
chenxi116/DeepLabv3.pytorch                 unbiased deviation + eps       GN; BN, without WS
Batch-Channel-Normalization, ``DeepLabV3``  unbiased deviation + eps       BCN
Batch-Channel-Normalization, ``imagenet``   sqrt(unbiased variance + eps)  BCN
==========================================  =============================  ====================

The norms in a file therefore determine its generation, except for ImageNet networks with BN and WS, which the authors
did not publish. Both deviations differ from that of Eq. 7 by a constant factor per output channel, for which the
conversion compensates.
"""
import re
from dataclasses import dataclass

import torch
from mmengine.registry import init_default_scope
from mmseg.datasets import PascalVOCDataset
from mmseg.models.backbones import ResNet, ResNeXt
from torch import Tensor, nn

from wsbcn_mmseg.models import DeepLabV3Head
from wsbcn_mmseg.runtime.errors import count_tensors

EPS = 1e-5
_UNUSED = ('num_batches_tracked', 'estbn_moving_speed')
_NORM_CFG = {'BN': dict(type='BN'), 'GN': dict(type='GN', num_groups=32), 'BCN': dict(type='BCN', num_groups=32)}
_DEVIATIONS = {'outside': lambda variance: variance.sqrt() + EPS, 'inside': lambda variance: (variance + EPS).sqrt()}
_FORMULAS = {'outside': 'std + eps', 'inside': 'sqrt(var + eps)'}
_DEPTHS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}


@dataclass(frozen=True)
class Official:
    """The contents of a published checkpoint.

    Attributes:
        task: ``'classification'`` or ``'segmentation'``.
        network: ``'ResNet-50'``, ``'ResNeXt-101'``, ...
        norm: ``'BN'``, ``'GN'`` or ``'BCN'``.
        ws: Whether the network standardizes its weights.
        num_classes: Number of rows of the last layer.
        eps: Where its layers add eps to the deviation of a kernel: ``'outside'`` or ``'inside'`` the root; None without
            WS.
    """
    task: str
    network: str
    norm: str
    ws: bool
    num_classes: int
    eps: str | None = None

    @property
    def dataset_meta(self) -> dict:
        """Names and colors of the classes, if known (PASCAL VOC)."""
        voc = PascalVOCDataset.METAINFO
        return dict(voc) if self.task == 'segmentation' and self.num_classes == len(voc['classes']) else {}

    def __str__(self) -> str:
        kernels = f', kernels divided by {_FORMULAS[self.eps]}' if self.eps else ''
        return (f'{self.task}, {self.network}, {self.norm}{"+WS" if self.ws else ""}, {self.num_classes} classes'
                f'{kernels}')


def recognize(weights: dict[str, Tensor], ws: bool | None = None, eps: str | None = None) -> Official:
    """Recognize the network of an authors' checkpoint from names and shapes of its tensors.

    Args:
        weights: Its state dict, without ``module.`` before the names.
        ws: Whether the network has Weight Standardization, which the names do not show. Defaults to None: as the
            authors published, with WS for GN and BCN, and without WS for BN.
        eps: ``'outside'`` or ``'inside'``, the generation of its layers. Defaults to None: from its task and norms.

    Raises:
        ValueError: If the format is not known, or if its generation cannot be determined.
    """
    logits = next((weights[name] for name in ('fc.weight', 'aspp.conv3.weight') if name in weights), None)
    norm = next((norm for name, norm in (('bn1.pbn.weight', 'BCN'), ('bn1.bn.weight', 'BCN'),
                                         ('bn1.running_mean', 'BN'), ('bn1.weight', 'GN')) if name in weights), None)
    blocks = tuple(len({name.split('.')[1] for name in weights if name.startswith(f'layer{stage}.')})
                   for stage in (1, 2, 3, 4))
    if logits is None or norm is None or blocks not in _DEPTHS or 'layer1.0.conv2.weight' not in weights:
        raise ValueError(f"not one of the authors' checkpoints: expected conv1, bn1, layer1 to layer4 of a ResNet or "
                         f'ResNeXt of 50 to 152 layers and fc or aspp, got {count_tensors(sorted(weights), most=5)} '
                         f'with {"-".join(map(str, blocks))} blocks')
    grouped = weights['layer1.0.conv2.weight'].shape[0] != weights['layer1.0.conv2.weight'].shape[1]
    task = 'classification' if 'fc.weight' in weights else 'segmentation'
    ws = norm != 'BN' if ws is None else ws
    if eps and not ws:
        raise ValueError(f'holds {norm} and counts as a network without WS, where eps has no meaning: say ws=True too')
    return Official(task, f'ResNe{"Xt" if grouped else "t"}-{_DEPTHS[blocks]}', norm, ws, len(logits),
                    _generation(task, norm, eps) if ws else None)


recognize = recognize


def _generation(task: str, norm: str, eps: str | None) -> str:
    if eps not in (None, *_DEVIATIONS):
        raise ValueError(f"eps must be 'outside' (std + eps) or 'inside' (sqrt(var + eps)), got {eps!r}")
    if eps is None and task == 'classification' and norm == 'BN':
        raise ValueError('holds BN, and the authors published no ImageNet network with BN and WS: say which of their '
                         "layers it was trained with, eps='outside' for std + eps (pytorch-classification) or "
                         "eps='inside' for sqrt(var + eps) (Batch-Channel-Normalization)")
    return eps or ('inside' if (task, norm) == ('classification', 'BCN') else 'outside')


def convert_official(weights: dict[str, Tensor], ws: bool | None = None, eps: str | None = None,
                     keep_kernels: bool = False) -> tuple[dict[str, Tensor], Official]:
    """Convert a state dict of the authors to the layout of this package.

    Names become those of MMPretrain's ``ImageClassifier`` or of the segmentor of ``configs/deeplabv3_r101_*_voc.py``.
    With s the deviation of Eq. 7, s' the authors' and f = s'/s, the factor goes into the stored statistics of the
    norm that follows, mu' = f mu and var' = f^2 (var + eps) - eps; where nothing is stored, with GN, into the scale
    of the kernel itself, which Eq. 7 does not cancel completely: W' = a W with a^2 = eps / (s'^2 - variance) gives
    the authors' kernel exactly. The converted networks then compute the same as the authors' networks. With BN and
    BCN, kernels keep their lengths, and further training is also the same. With GN it is not: a is between 0.1 and 5
    in a ResNet-50 from Kaiming's initialization, and an SGD step changes W' by 1 / a^2 as much in proportion.

    Args:
        weights: State dict, without ``module.`` before the names.
        ws: See :func:`recognize`.
        eps: See :func:`recognize`.
        keep_kernels: Do not change the kernels of a network with GN+WS. With ``conv_cfg=dict(type='ConvWSStdEps')``,
            it then computes and trains as the authors' network. Defaults to False.

    Returns:
        The converted state dict, and its description. Converted values are computed in float64 and returned in the
        given dtypes.

    Raises:
        ValueError: If ``keep_kernels`` is set for a network other than GN+WS with eps outside the root; if the format
            or its generation is unknown; or if tensors are missing, unexpected or have other shapes (the message
            lists them).
    """
    weights = {name: value for name, value in weights.items() if not name.endswith(_UNUSED)}
    official = recognize(weights, ws, eps)
    if keep_kernels and (official.norm, official.eps) != ('GN', 'outside'):
        raise ValueError(f'holds {official}: only kernels of GN+WS divided by std + eps can be kept for ConvWSStdEps')
    if official.ws and not keep_kernels:
        _absorb_deviations(weights, official)
    converted = {_rename(name, official.norm): value for name, value in weights.items()}
    if official.norm == 'BCN':
        for name, value in converted.items():
            if re.search(r'bcn\d?\.(weight|bias)$|downsample\.1\.(weight|bias)$', name):
                converted[name] = value.flatten()  # (1, G, 1)
    _check(converted, official)
    return converted, official


def _absorb_deviations(weights: dict[str, Tensor], official: Official) -> None:
    for name in [name for name in weights if _norm_after(name)]:
        kernel = weights[name].double().flatten(1)
        variance, unbiased = kernel.var(1, correction=0), kernel.var(1)
        theirs = _DEVIATIONS[official.eps](unbiased)
        if official.norm == 'GN':
            scale = (EPS / (theirs**2 - variance)).sqrt()
            weights[name] = (scale[:, None] * kernel).view_as(weights[name]).to(weights[name].dtype)
        else:
            _absorb_into_statistics(weights, _norm_after(name), theirs / (variance + EPS).sqrt())


def _absorb_into_statistics(weights: dict[str, Tensor], norm: str, factor: Tensor) -> None:
    """Change a norm's statistics for an input that is scaled by ``factor``, so that its output stays the same."""
    norm = next((inner for inner in (f'{norm}.pbn', f'{norm}.bn') if f'{inner}.running_var' in weights), norm)
    mean, var, scale = (f'{norm}.{name}' for name in ('running_mean', 'running_var', 'weight'))
    if var not in weights or scale not in weights or mean not in weights:
        return  # _check reports it
    wanted = factor**2 * (weights[var].double() + EPS) - EPS
    stored = wanted.clamp(min=0)  # variances are not negative; for tiny channels the scale makes up for the difference
    values = {mean: factor * weights[mean].double(), var: stored,
              scale: weights[scale].double() * ((stored + EPS) / (wanted + EPS)).sqrt()}
    weights.update({name: value.to(weights[name].dtype) for name, value in values.items()})


def _norm_after(name: str) -> str | None:
    """The authors' name of the norm after a convolution; None if ``name`` is not such a convolution."""
    match = re.fullmatch(r'(layer\d\.\d+\.|aspp\.|)conv(\d)\.weight', name)
    if match and (match[1] + match[2]) != 'aspp.3':
        return f'{match[1]}bn{match[2]}'
    match = re.fullmatch(r'(.*downsample\.)0\.weight', name)
    if match:
        return f'{match[1]}1'
    match = re.fullmatch(r'(aspp\.aspp\d)\.weight', name)
    return f'{match[1]}_bn' if match else None


def _rename(name: str, norm: str) -> str:
    abbreviation = norm.lower()
    name = re.sub(r'\.pbn\.', '.bn.', name)
    if not name.startswith('aspp.'):
        name = re.sub(r'^fc\.', 'head.fc.', name)
        name = re.sub(r'(^|\.)bn(\d)\.', rf'\1{abbreviation}\2.', name)
        return name if name.startswith('head.') else f'backbone.{name}'
    places = {**{str(i): f'aspp_modules.{i - 1}' for i in range(1, 5)}, '5': 'image_pool.1'}
    name = name.removeprefix('aspp.')
    name = re.sub(r'^aspp(\d)_bn\.', lambda match: f'{places.get(match[1], match[0])}.{abbreviation}.', name)
    name = re.sub(r'^aspp(\d)\.', lambda match: f'{places.get(match[1], match[0])}.conv.', name)
    name = re.sub(r'^conv2\.', 'bottleneck.conv.', name)
    name = re.sub(r'^bn2\.', f'bottleneck.{abbreviation}.', name)
    return 'decode_head.' + re.sub(r'^conv3\.', 'conv_seg.', name)


def expected_network(official: Official, conv_cfg: dict | None = None) -> nn.ModuleDict:
    """The backbone and head for the converted weights, on the device ``meta``."""
    kind, depth = official.network.split('-')
    norm_cfg = _NORM_CFG[official.norm]
    extra = dict(groups=32, base_width=4) if kind == 'ResNeXt' else {}
    init_default_scope('mmseg')
    with torch.device('meta'):
        backbone = (ResNeXt if extra else ResNet)(depth=int(depth), conv_cfg=conv_cfg, norm_cfg=norm_cfg, **extra)
        if official.task == 'classification':
            return nn.ModuleDict(dict(backbone=backbone, head=nn.ModuleDict(dict(
                fc=nn.Linear(2048, official.num_classes)))))
        head = DeepLabV3Head(in_channels=2048, channels=256, num_classes=official.num_classes,
                             conv_cfg=conv_cfg, norm_cfg=norm_cfg)
    return nn.ModuleDict(dict(backbone=backbone, decode_head=head))


def _check(converted: dict[str, Tensor], official: Official) -> None:
    expected = {name: value.shape for name, value in expected_network(official).state_dict().items()
                if not name.endswith(_UNUSED)}
    missing, unexpected = sorted(expected.keys() - converted.keys()), sorted(converted.keys() - expected.keys())
    misshapen = [f'{name} {tuple(value.shape)} instead of {tuple(expected[name])}'
                 for name, value in converted.items() if name in expected and value.shape != expected[name]]
    if missing or unexpected or misshapen:
        raise ValueError(f'looks like {official}, but {count_tensors(missing)} missing, '
                         f'{count_tensors(unexpected)} unexpected, {count_tensors(misshapen)} of another shape')
