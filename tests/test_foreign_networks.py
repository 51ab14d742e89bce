"""Networks of torchvision, timm and segmentation_models_pytorch: converted, trained a step, folded, exported."""
import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsbcn_mmseg import convert_model, fold
from wsbcn_mmseg.layers import BCN
from wsbcn_mmseg.layers.reparametrized_conv import ReparametrizedConv


def of_timm(name, **settings):
    return lambda: pytest.importorskip('timm', reason='needs timm').create_model(name, num_classes=4, **settings)


def of_smp(kind, encoder, **settings):
    def build():
        smp = pytest.importorskip('segmentation_models_pytorch', reason='needs segmentation_models_pytorch')
        return getattr(smp, kind)(encoder, encoder_weights=None, classes=4, **settings)
    return build


def of_torchvision(name, package='models', **settings):
    def build():
        pytest.importorskip('torchvision', reason='needs torchvision')
        models = pytest.importorskip('torchvision.models')
        return getattr(getattr(models, package, models), name)(weights=None, weights_backbone=None, **settings) \
            if package == 'segmentation' else getattr(models, name)(weights=None, **settings)
    return build


NETWORKS = {
    'timm resnet10t': of_timm('resnet10t'),
    'timm tf_efficientnet_lite0': of_timm('tf_efficientnet_lite0'),  # Conv2dSame, BatchNormAct2d
    'timm resnetv2_18': of_timm('resnetv2_18'),  # norms first, skips from convolutions
    'timm levit_128s': of_timm('levit_128s', img_size=64),  # BatchNorm1d after linear layers
    'smp Unet': of_smp('Unet', 'resnet18', decoder_channels=(64, 32, 16, 16, 8)),
    'smp PAN': of_smp('PAN', 'resnet18'),  # pooled branches
    'smp Unet efficientnet-b0': of_smp('Unet', 'efficientnet-b0', decoder_channels=(32, 16, 16, 8, 8)),
    'torchvision resnet18': of_torchvision('resnet18'),
    'torchvision lraspp': of_torchvision('lraspp_mobilenet_v3_large', 'segmentation', num_classes=4),
}
READ_ELSEWHERE = 'its output or kernel is read elsewhere too (read_elsewhere=True converts it)'


def first(output):
    output = next(iter(output.values())) if isinstance(output, dict) else output
    return output[0] if isinstance(output, (tuple, list)) else output


@pytest.mark.parametrize('name', NETWORKS)
def test_a_network_from_conversion_to_export(name):
    # PAN's last pooled branch has one channel and one position: its BatchNorm stays, and asks for two images
    shape = (2, 3, 128, 128) if 'PAN' in name else (1, 3, 64, 64)
    model, x = NETWORKS[name](), torch.randn(shape)
    keys = set(model.state_dict())
    report = convert_model(model, x).conversion_report
    assert report.norms
    assert set(report.kept.values()) <= {
        READ_ELSEWHERE, 'no norm reads its output', 'transposed convolutions are not standardized',
        'a fan-in of 1 (depth-wise 1x1), which Weight Standardization would turn to zero',
        'it did not run', 'the norm that reads its output is kept'} | {
            reason for reason in report.kept.values() if 'fewer values' in reason}
    if name not in ('timm tf_efficientnet_lite0', 'timm resnetv2_18'):  # norms with an activation become two layers
        assert {key for key in keys if key.endswith('weight')} <= set(model.state_dict())

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for layer in model.modules():
        if isinstance(layer, BCN):
            layer.update_rate = 0.1
    loss = first(model.train()(x)).square().mean()
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)

    model.eval()
    again = NETWORKS[name]()
    convert_model(again, x)
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    expected = first(model(x))
    torch.testing.assert_close(first(again.eval()(x)), expected)
    folded = fold(model, x)
    assert not any(isinstance(module, (BCN, ReparametrizedConv)) for module in folded.modules())
    tolerance = dict(rtol=0, atol=1e-4 * float(expected.abs().max()))
    torch.testing.assert_close(first(folded(x)), expected, **tolerance)
    program = torch.export.export(folded, (x, ))
    torch.testing.assert_close(first(program.module()(x)), expected, **tolerance)


def test_the_report_names_narrow_groups_of_levit():
    """Its 48 norms after linear layers see one position each."""
    model = NETWORKS['timm levit_128s']()
    report = convert_model(model, torch.randn(1, 3, 64, 64)).conversion_report
    after_linear = [layer for name, layer in model.named_modules() if isinstance(layer, BCN) and '.bn' in name]
    assert len(report.regrouped) + len(report.kept) >= 20
    assert all(layer.num_channels // layer.num_groups >= 2 for layer in after_linear)


def test_timm_builds_networks_with_bcn():
    timm = pytest.importorskip('timm', reason='needs timm')
    model = timm.create_model('resnet10t', norm_layer=BCN, num_classes=4)
    assert not [m for m in model.modules() if isinstance(m, _BatchNorm) and not any(
        m is layer.bn for layer in model.modules() if isinstance(layer, BCN))]
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 4)


def test_group_widths_decide_on_vectors():
    """The digits' MLP that lost its accuracy by groups of two channels: groups have sixteen now."""
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.BatchNorm1d(32),
                          nn.ReLU(), nn.Linear(32, 10))
    convert_model(model)
    assert {layer.num_channels // layer.num_groups for layer in model if isinstance(layer, BCN)} == {16}
