"""Networks under the authors' names, with layers written out here after their code, give the same logits after
conversion."""
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, run_tool
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from wsbcn_mmseg.conversion.official import Official, convert_official, expected_network
from wsbcn_mmseg.layers import ConvWSStdEps
from wsbcn_mmseg.runtime.checkpoint import read_weights
from wsbcn_mmseg.runtime.launch import load_config

EPS = 1e-5


class FirstConv(nn.Conv2d):
    """Of pytorch-classification (models/layers.py) and both DeepLabV3 (deeplab.py): divides by std + eps."""

    def forward(self, x):
        centered = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        std = (centered.square().sum((1, 2, 3), keepdim=True) / (centered[0].numel() - 1)).sqrt()
        return self._conv_forward(x, centered / (std + EPS), self.bias)


class SecondConv(nn.Conv2d):
    """Of Batch-Channel-Normalization's ImageNet networks (imagenet/models/layers.py): by sqrt(var + eps)."""

    def forward(self, x):
        centered = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        var = centered.square().sum((1, 2, 3), keepdim=True) / (centered[0].numel() - 1)
        return self._conv_forward(x, centered / (var + EPS).sqrt(), self.bias)


class TheirBCN(nn.Module):

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.randn(1, 32, 1)) for _ in range(2))
        self.pbn = nn.BatchNorm2d(channels)

    def forward(self, x):
        y = self.pbn(x).view(len(x), 32, -1)
        y = (y - y.mean(2, keepdim=True)) / (y.var(2, correction=0, keepdim=True) + EPS).sqrt()
        return (y * self.weight + self.bias).view_as(x)


NORMS = {'BN': nn.BatchNorm2d, 'GN': lambda channels: nn.GroupNorm(32, channels), 'BCN': TheirBCN}


class Bottleneck(nn.Module):

    def __init__(self, conv, norm, inputs, planes, stride, dilation, groups, shortcut):
        super().__init__()
        width = planes if groups == 1 else planes * 4 // 64 * groups
        self.conv1, self.bn1 = conv(inputs, width, 1, bias=False), norm(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride, dilation, dilation, groups, bias=False), norm(width)
        self.conv3, self.bn3 = conv(width, planes * 4, 1, bias=False), norm(planes * 4)
        self.downsample = nn.Sequential(conv(inputs, planes * 4, 1, stride, bias=False),
                                        norm(planes * 4)) if shortcut else None

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (self.downsample(x) if self.downsample else x))


class ASPP(nn.Module):

    def __init__(self, conv, norm, num_classes):
        super().__init__()
        for i, dilation in enumerate((1, 6, 12, 18, 1), 1):
            kernel = 3 if dilation > 1 else 1
            padding = dilation if dilation > 1 else 0
            setattr(self, f'aspp{i}', conv(2048, 256, kernel, 1, padding, dilation, bias=False))
            setattr(self, f'aspp{i}_bn', norm(256))
        self.conv2, self.bn2 = conv(1280, 256, 1, bias=False), norm(256)
        self.conv3 = nn.Conv2d(256, num_classes, 1)

    def forward(self, x):
        inputs = [x] * 4 + [x.mean((2, 3), keepdim=True)]
        branches = [F.relu(getattr(self, f'aspp{i}_bn')(getattr(self, f'aspp{i}')(y))) for i, y in enumerate(inputs, 1)]
        branches[4] = F.interpolate(branches[4], x.shape[2:], mode='bilinear', align_corners=True)
        return self.conv3(F.relu(self.bn2(self.conv2(torch.cat(branches, 1)))))


class Theirs(nn.Module):
    """ResNet or ResNeXt with ``fc``, or DeepLabV3 with ``aspp``."""

    def __init__(self, task, norm, ws, depth=50, groups=1):
        super().__init__()
        conv = (SecondConv if (task, norm) == ('classification', 'BCN') else FirstConv) if ws else nn.Conv2d
        norm, segments = NORMS[norm], task == 'segmentation'
        self.conv1, self.bn1 = conv(3, 64, 7, 2, 3, bias=False), norm(64)
        inputs = 64
        for stage, blocks in enumerate((3, 4, 6 if depth == 50 else 23, 3)):
            planes, last = 64 * 2**stage, segments and stage == 3
            layer = []
            for i in range(blocks):
                stride = 2 if i == 0 and stage > 0 and not last else 1
                layer.append(Bottleneck(conv, norm, inputs, planes, stride, 2 if last and i else 1, groups, i == 0))
                inputs = planes * 4
            setattr(self, f'layer{stage + 1}', nn.Sequential(*layer))
        if segments:
            self.aspp = ASPP(conv, norm, 21)
        else:
            self.fc = nn.Linear(2048, 1000)

    def forward(self, x):
        y = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        y = self.layer4(self.layer3(self.layer2(self.layer1(y))))
        return self.aspp(y) if hasattr(self, 'aspp') else self.fc(y.mean((2, 3)))


def published(task, norm, ws, **kwargs):
    """A network with uneven parameters and statistics, so that nothing cancels by chance, in evaluation mode."""
    network = Theirs(task, norm, ws, **kwargs).double().eval()
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.dim() in (1, 3):  # of norms, or a bias
                value.uniform_(.5, 1.5) if name.endswith('weight') else value.uniform_(-.3, .3)
            elif value.dim() == 4:
                value.mul_(torch.rand(len(value), 1, 1, 1) / 3 + .03).add_(.01)  # also of small kernels
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                fan_in = 100 if ws else 1
                module.running_mean.uniform_(-.5, .5)
                module.running_var.uniform_(.5 * fan_in, 2 * fan_in)
    return network


# Every file that the authors' README files link to: task, norm, WS, settings, where eps is added.
PUBLISHED = {
    'R-50-GN-WS': ('classification', 'GN', True, dict(depth=50), 'outside'),
    'R-101-GN-WS': ('classification', 'GN', True, dict(depth=101), 'outside'),
    'X-50-GN-WS': ('classification', 'GN', True, dict(depth=50, groups=32), 'outside'),
    'X-101-GN-WS': ('classification', 'GN', True, dict(depth=101, groups=32), 'outside'),
    'rn50_bcn_ws': ('classification', 'BCN', True, dict(depth=50), 'inside'),
    'rn101_bcn_ws': ('classification', 'BCN', True, dict(depth=101), 'inside'),
    'rx50_bcn_ws': ('classification', 'BCN', True, dict(depth=50, groups=32), 'inside'),
    'deeplab_v3_bn': ('segmentation', 'BN', False, dict(depth=101), None),
    'deeplab_v3_gn_ws': ('segmentation', 'GN', True, dict(depth=101), 'outside'),
    'deeplab_v3_bcn_ws': ('segmentation', 'BCN', True, dict(depth=101), 'outside'),
}


@pytest.mark.parametrize('file', PUBLISHED)
def test_converted_networks_give_the_authors_logits(file):
    task, norm, ws, settings, eps = PUBLISHED[file]
    theirs = published(task, norm, ws, **settings)
    weights = {name: value.clone() for name, value in theirs.state_dict().items()}
    if norm == 'BCN':
        weights['bn1.estbn_moving_speed'] = torch.zeros(1)
    converted, official = convert_official(weights)
    assert official == Official(task, f'ResNe{"Xt" if "groups" in settings else "t"}-{settings["depth"]}', norm, ws,
                                1000 if task == 'classification' else 21, eps)

    network = our_network(official)
    network.load_state_dict(converted, strict=True)
    x = torch.randn(1, 3, 33, 33, dtype=torch.float64)
    with torch.no_grad():
        wanted = theirs(x)
        assert wanted.std() > .1
        torch.testing.assert_close(network(x), wanted, rtol=0, atol=1e-9 * float(wanted.std()))
        if ws and settings['depth'] == 50:  # the deviations differ: neither the other one nor none will do
            for wrong in (dict(eps={'outside': 'inside', 'inside': 'outside'}[eps]), dict(ws=False)):
                network.load_state_dict(convert_official(weights, **wrong)[0])
                assert (network(x) - wanted).abs().max() > 1e-3 * wanted.std()


def test_gn_networks_train_on_as_the_authors_with_their_kernels_kept():
    """ConvWSStdEps is their layer, gradients too; with its kernels as they are, a network computes what theirs does."""
    theirs, ours = (cls(4, 6, 3, padding=1, groups=2).double() for cls in (FirstConv, ConvWSStdEps))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    outputs = [conv(x) for conv in (theirs, ours)]
    torch.testing.assert_close(outputs[1], outputs[0])
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    with pytest.raises(TypeError):
        ConvWSStdEps(4, 6, 3, center=False)

    network = published('classification', 'GN', True, depth=50)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    kept, official = convert_official(weights, keep_kernels=True)
    assert torch.equal(kept['backbone.layer1.0.conv2.weight'], weights['layer1.0.conv2.weight'])
    again = OurClassifier(expected_network(official, dict(type='ConvWSStdEps')).to_empty(device='cpu')).double().eval()
    again.load_state_dict(kept)
    image = torch.randn(1, 3, 33, 33, dtype=torch.float64)
    with torch.no_grad():
        wanted = network(image)
        torch.testing.assert_close(again(image), wanted, rtol=0, atol=1e-9 * float(wanted.std()))
    with pytest.raises(ValueError, match='only kernels of GN'):
        convert_official(weights, eps='inside', keep_kernels=True)


def test_a_generation_that_cannot_be_told_is_asked_for():
    weights = {name: value.clone() for name, value in published('classification', 'BN', True).state_dict().items()}
    assert convert_official(weights)[1].eps is None, 'published BN is without WS'
    with pytest.raises(ValueError, match="eps='outside' for .*eps='inside' for"):
        convert_official(weights, ws=True)
    with pytest.raises(ValueError, match='say ws=True too'):
        convert_official(weights, eps='inside')
    with pytest.raises(ValueError, match="got 'root'"):
        convert_official(weights, ws=True, eps='root')
    converted, official = convert_official(weights, ws=True, eps='outside')
    assert official.eps == 'outside'
    assert 'BN+WS, 1000 classes, kernels divided by std + eps' in str(official)
    network = our_network(official)
    network.load_state_dict(converted)
    x = torch.randn(1, 3, 33, 33, dtype=torch.float64)
    with torch.no_grad():
        theirs = Theirs('classification', 'BN', True).double().eval()
        theirs.load_state_dict(weights)
        wanted = theirs(x)
        torch.testing.assert_close(network(x), wanted, rtol=0, atol=1e-9 * float(wanted.std()))


class OurClassifier(nn.Module):

    def __init__(self, parts):
        super().__init__()
        self.backbone, self.head = parts['backbone'], parts['head']

    def forward(self, x):
        return self.head['fc'](self.backbone(x)[-1].mean((2, 3)))


def our_network(official):
    """The segmentor of the config for VOC, or ResNet and classifier, in float64 and evaluation mode."""
    if official.task == 'segmentation':
        stem = {'BCN': 'bcn_ws', 'GN': 'gn_ws', 'BN': 'bn'}[official.norm]
        cfg = load_config(str(ROOT / 'configs' / f'deeplabv3_r101_{stem}_voc.py'), None, None, 'none')
        init_default_scope('mmseg')
        return MODELS.build(cfg.model).double().eval()
    network = expected_network(official, conv_cfg=dict(type='ConvWS') if official.ws else None)
    return OurClassifier(network.to_empty(device='cpu')).double().eval()


def test_files_in_the_formats_of_2019_are_read(tmp_path):
    """pytorch-classification's: no state_dict around the weights, DataParallel's names, torch's format before 1.6; of
    the same networks as Detectron pickles, only PyTorch's files are taken, since reading a pickle may run code."""
    theirs = published('classification', 'GN', True).float()
    weights = {f'module.{name}': value for name, value in theirs.state_dict().items()}
    torch.save(weights, tmp_path / 'R-50-GN-WS.pth.tar', _use_new_zipfile_serialization=False)
    official = convert_official(read_weights(tmp_path / 'R-50-GN-WS.pth.tar'))[1]
    assert str(official) == 'classification, ResNet-50, GN+WS, 1000 classes, kernels divided by std + eps'
    (tmp_path / 'R-50-GN-WS.pkl').write_bytes(pickle.dumps({'blobs': {'conv1_w': np.zeros((64, 3, 7, 7))}}, 2))
    with pytest.raises(ValueError, match=r'more than weights: reading it would run numpy[\w.]+_reconstruct'):
        read_weights(tmp_path / 'R-50-GN-WS.pkl')


def test_tool_and_its_refusals(tmp_path):
    theirs = published('classification', 'BCN', True).float()
    published_format = {'epoch': 90, 'state_dict': {f'module.{k}': v for k, v in theirs.state_dict().items()},
                        'best_acc': torch.tensor(76.9), 'optimizer': {'state': {}}}
    torch.save(published_format, tmp_path / 'rn50.pth')
    result = run_tool('convert_official_checkpoint.py', tmp_path / 'rn50.pth', tmp_path / 'out' / 'ours.pth')
    assert 'classification, ResNet-50, BCN+WS, 1000 classes, kernels divided by sqrt(var + eps)' in result.stdout
    written = torch.load(tmp_path / 'out' / 'ours.pth', weights_only=True)
    assert written['state_dict']['backbone.bcn1.weight'].shape == (32, )

    partial = {k: v for k, v in theirs.state_dict().items() if k != 'layer2.1.bn2.bias'}
    for weights, expected in ((partial, 'backbone.layer2.1.bcn2.bias'),
                              ({**theirs.state_dict(), 'extra.weight': torch.ones(1)}, 'extra.weight'),
                              ({'a': torch.ones(2)}, "not one of the authors' checkpoints")):
        torch.save(weights, tmp_path / 'bad.pth')
        result = run_tool('convert_official_checkpoint.py', tmp_path / 'bad.pth', tmp_path / 'bad_out.pth', check=False)
        assert result.returncode == 1
        assert expected in result.stderr
        assert 'Traceback' not in result.stderr
        assert not (tmp_path / 'bad_out.pth').exists()


@pytest.mark.parametrize('config, official', [
    ('resnet50_bcn_ws', Official('classification', 'ResNet-50', 'BCN', True, 1000)),
    ('resnet101_bcn_ws', Official('classification', 'ResNet-101', 'BCN', True, 1000)),
    ('resnext50_32x4d_bcn_ws', Official('classification', 'ResNeXt-50', 'BCN', True, 1000)),
    ('resnext101_32x4d_gn_ws', Official('classification', 'ResNeXt-101', 'GN', True, 1000))], ids=lambda c: str(c))
def test_classification_results_are_the_state_dicts_of_mmpretrain_s_classifiers(config, official):
    pytest.importorskip('mmpretrain')
    cfg = load_config(str(ROOT / 'configs' / 'imagenet' / f'{config}_in1k.py'), None, None, 'none')
    init_default_scope('mmpretrain')
    classifier = MODELS.build(cfg.model)
    expected, ours = ({name: value.shape for name, value in network.state_dict().items()}
                      for network in (classifier, expected_network(official)))
    assert ours == expected
