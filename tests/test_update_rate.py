"""One line ties the update rate to the learning rate, in any training loop."""
import copy
import re
import warnings

import pytest
import torch
from torch import nn

from wsbcn_mmseg import follow_learning_rate
from wsbcn_mmseg.layers import BCN, ConvWS, UpdateRate

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network():
    return nn.Sequential(ConvWS(3, 8, 3), BCN(8), nn.ReLU(), ConvWS(8, 8, 3), BCN(8))


def rates(model):
    return [layer.update_rate for layer in model if isinstance(layer, BCN)]


def test_a_plain_loop_with_a_scheduler_and_accumulation():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    follow_learning_rate(model, optimizer)
    for iteration in range(3):
        for _ in range(2):
            model(X).sum().backward()
            assert rates(model) == [0.4 * 0.5**iteration] * 2
        optimizer.step()
        scheduler.step()
    assert model[1].bn.num_batches_tracked == 6
    before = rates(model)
    model.eval()(X)
    assert rates(model) == before


def test_groups_bounds_frozen_layers_and_resuming():
    model = network()
    groups = [dict(params=model[:3].parameters(), lr=0.2), dict(params=model[3:].parameters(), lr=1e-4)]
    optimizer = torch.optim.AdamW(groups)
    follow_learning_rate(model, optimizer, factor=2, min_rate=0.01, max_rate=0.3)
    model(X).sum().backward()
    assert rates(model) == [0.3, 0.01]
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    state['param_groups'][0]['lr'] = 0.05
    optimizer.load_state_dict(state)
    model(X)
    assert rates(model) == [0.1, 0.01]
    frozen = network()
    frozen[1].requires_grad_(False)
    rate = follow_learning_rate(frozen, torch.optim.SGD([*frozen[0].parameters(), *frozen[4].parameters()], lr=0.5))
    frozen(X)
    assert rates(frozen) == [0.01, 0.5]
    assert rate.lost == []
    assert UpdateRate(network(), torch.optim.SGD([nn.Parameter(X)], lr=1)).lost == ['1', '4']


def test_compiled_networks():
    torch._dynamo.reset()  # it remembers which sizes varied in other tests, and compiles for them
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    follow_learning_rate(model, optimizer)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=backend)
    for lr in (0.4, 0.2, 0.1):
        optimizer.param_groups[0]['lr'] = lr
        before = model[1].bn.running_mean.clone()
        compiled(X)
        assert rates(model) == [lr, lr]
        torch.testing.assert_close(model[1].bn.running_mean, before.lerp(model[0](X).mean((0, 2, 3)), lr))
    assert len(graphs) <= 2  # a new learning rate compiles nothing


@pytest.mark.parametrize('settings, message', [
    (dict(factor=-1), 'factor'), (dict(min_rate=0.5, max_rate=0.1), 'min_rate <= max_rate'),
    (dict(max_rate=float('nan')), 'max_rate'), (dict(factor='2'), 'factor')])
def test_settings_are_checked(settings, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        follow_learning_rate(model, torch.optim.SGD(model.parameters(), lr=0.1), **settings)


def test_networks_without_bcn_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    with pytest.raises(ValueError, match='no micro-batch BCN; convert it before'):
        follow_learning_rate(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_the_warning_about_a_constant_rate_names_it(monkeypatch):
    monkeypatch.setattr(BCN, '_warned', False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        network()(X)
    assert [str(w.message) for w in caught if re.search(r'follow_learning_rate\(model, optimizer\)', str(w.message))]
    monkeypatch.setattr(BCN, '_warned', False)
    model = network()
    follow_learning_rate(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model(X)
