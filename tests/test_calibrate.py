"""The calibrated start: channel normalization set from unlabeled images."""
import copy
import runpy

import pytest
import torch
from conftest import ROOT
from torch import nn

from wsbcn_mmseg import convert_model
from wsbcn_mmseg.conversion.calibrate import calibrate
from wsbcn_mmseg.layers import BCN


def trained_network(norms: int = 3) -> nn.Sequential:
    """Convolutions, BatchNorms with statistics and affine maps as after training, ReLU; in float64."""
    layers = []
    for channels in [3, *[16] * (norms - 1)]:
        layers += [nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16, momentum=None), nn.ReLU()]
    network = nn.Sequential(*layers).double()
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, .3, 2)
            nn.init.normal_(layer.bias, 0, .5)
    with torch.no_grad():
        for _ in range(4):
            network.train()(images())
    return network.eval()


def images(count: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, 12, 12, dtype=torch.float64)


def converted(network: nn.Module, **arguments) -> nn.Module:
    model = copy.deepcopy(network)
    convert_model(model, torch.zeros(1, 3, 12, 12, dtype=torch.float64), dict(type='BCN', **arguments), preserve=True)
    return model


def test_scales_and_shifts_are_the_groups_means_and_deviations_in_the_batch_norm_network():
    network, x = trained_network(), images()
    model = converted(network, num_groups=4)
    outputs = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
    network(x)
    assert calibrate(model, x) == 3
    for name, output in outputs.items():
        groups = output.view(8, 4, -1)
        torch.testing.assert_close(model.get_submodule(name).bias, groups.mean(2).mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.get_submodule(name).weight, groups.std(2, correction=0).mean(0), rtol=1e-4,
                                   atol=1e-5)


def test_calibration_brings_the_output_closer_to_the_batch_norm_network():
    """On images of less contrast than those of its training: what BatchNorm's parameters promise does not hold there.
    """
    network, x = trained_network(), images(16) / 3
    model = converted(network, num_groups=4)
    wanted = network(x)
    before = (model(x) - wanted).norm() / wanted.norm()
    calibrate(model, images() / 3)
    after = (model(x) - wanted).norm() / wanted.norm()
    assert after < .6 * before


def test_everything_else_stays_and_new_layers_keep_their_start():
    network = trained_network(2)
    model = nn.Sequential(converted(network, num_groups=4), BCN(16).double()).train()
    model[0].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert calibrate(model, [(images(2), ), images(1)]) == 2
    changed = {name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {'0.1.weight', '0.1.bias', '0.4.weight', '0.4.bias'}
    assert model.training
    assert model[1].training
    assert not model[0][1].bn.training
    assert all('forward' not in vars(module) for module in model.modules())


def test_several_calls_count_every_image_alike():
    network, x = trained_network(), images(4)
    together, apart = converted(network, num_groups=2), converted(network, num_groups=2)
    calibrate(together, x)
    calibrate(apart, x.split(1))
    torch.testing.assert_close(together.state_dict(), apart.state_dict())


def test_a_network_without_trained_estimates_is_refused():
    with pytest.raises(ValueError, match='preserve=True'):
        calibrate(nn.Sequential(nn.Conv2d(3, 8, 3), BCN(8)), torch.zeros(1, 3, 8, 8))


class Pyramid(nn.Sequential):
    """Returns a list of feature maps, as a backbone does."""

    def forward(self, x):
        return [super().forward(x)]


def test_the_measured_change_of_features():
    """tools/conversion_error.py: calibration brings the features closer to those with BN."""
    tool = runpy.run_path(str(ROOT / 'tools' / 'conversion_error.py'))
    backbone = Pyramid(*trained_network())
    data = [2 * images(1) + 1 for _ in range(20)]  # not as in training
    rows = tool['rows'](backbone, data[:10], data[10:])
    assert [row['method'] for row in rows] == ['GN+WS', 'BCN+WS', 'BCN+WS', 'BCN+WS']
    assert rows[0]['calibrated_error'] is None
    for row in rows[1:]:
        assert 0 < row['calibrated_error'] < row['error'] < 1
        assert 1 > row['calibrated_correlation'] > row['correlation'] > 0
    features = tool['features'](backbone, data)
    assert tool['compare'](features, features) == pytest.approx((0, 1))
    assert tool['compare'](-2 * features, features) == pytest.approx((3, -1))
