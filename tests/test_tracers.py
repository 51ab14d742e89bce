"""Unfolded layers under tracers, exporters and transforms: the right numbers at other batch sizes, or one sentence."""
import copy
import io
import warnings

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from wsbcn_mmseg import convert_model
from wsbcn_mmseg.layers import BCN, AdaptiveConvWS, ConvCWN, ConvWN, ConvWS, ConvWS1d, ConvWS3d


class Net(nn.Module):
    """A residual network in short, with a grouped, a biased and a strided convolution."""

    def __init__(self, mode='micro_batch'):
        super().__init__()
        self.conv1, self.bcn1 = ConvWS(3, 8, 3, padding=1, bias=False), BCN(8, mode=mode)
        self.conv2, self.bcn2 = ConvWS(8, 8, 3, padding=1, groups=2), BCN(8, num_groups=2, mode=mode)
        self.conv3, self.relu = ConvWS(8, 6, 1, stride=2, padding_mode='reflect'), nn.ReLU()

    def forward(self, x):
        x = self.relu(self.bcn1(self.conv1(x)))
        return self.conv3(self.relu(self.bcn2(self.conv2(x)) + x))


def settled(model, *shape):
    """In evaluation, with estimates and affines that are not those of the start."""
    for module in model.modules():
        if isinstance(module, BCN):
            nn.init.normal_(module.bn.running_mean)
            nn.init.uniform_(module.bn.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return model.eval()


LAYERS = {
    'ConvWS': (lambda: ConvWS(8, 8, 3), (2, 8, 7, 9)), 'grouped': (lambda: ConvWS(8, 12, 3, groups=4), (2, 8, 7, 9)),
    'one output': (lambda: ConvWS(4, 1, 3), (2, 4, 7, 9)), 'ConvWS1d': (lambda: ConvWS1d(4, 6, 3), (2, 4, 9)),
    'ConvWS3d': (lambda: ConvWS3d(2, 4, 3), (2, 2, 5, 6, 7)), 'centered': (lambda: ConvWS(8, 8, 3, scale=False),
                                                                           (2, 8, 7, 9)),
    'adaptive': (lambda: AdaptiveConvWS(8, 8, 3), (2, 8, 7, 9)), 'WN': (lambda: ConvWN(8, 8, 3), (2, 8, 7, 9)),
    'CWN': (lambda: ConvCWN(8, 8, 3), (2, 8, 7, 9)), 'BCN': (lambda: BCN(12), (2, 12, 5, 7)),
    'BCN of vectors': (lambda: BCN(16, num_groups=2), (2, 16)),
    'large batch': (lambda: BCN(12, mode='large_batch'), (2, 12, 5, 7)), 'net': (Net, (2, 3, 12, 10))}


@pytest.mark.parametrize('pre_dispatch', [True, False])
@pytest.mark.parametrize('name', LAYERS)
def test_make_fx_records_what_layers_compute(name, pre_dispatch, monkeypatch):
    monkeypatch.setenv('WSBCN_IMPL', 'fused')  # its operators cannot be recorded with gradients
    build, shape = LAYERS[name]
    model, x = settled(build()), torch.randn(shape)
    recorded = make_fx(model, pre_dispatch=pre_dispatch)(torch.randn(shape))
    torch.testing.assert_close(recorded(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dynamo', [True, False])
@pytest.mark.parametrize('name', LAYERS)
def test_onnx_runtime_computes_what_the_unfolded_network_does(name, dynamo):
    """At the batch size of the export and at another, both exporters of PyTorch."""
    runtime = pytest.importorskip('onnxruntime', reason='needs the extra `export`')
    pytest.importorskip('onnxscript', reason='needs the extra `export`')
    if name == 'ConvWS3d' and not dynamo:
        pytest.skip('the old exporter has no layer normalization over five dimensions')
    build, shape = LAYERS[name]
    model, x = settled(build()), torch.randn(shape)
    dynamic = dict(dynamic_shapes=({0: torch.export.Dim.AUTO}, )) if dynamo else dict(dynamic_axes={'x': {0: 'n'}})
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        program = torch.onnx.export(model, (x, ), None if dynamo else file, dynamo=dynamo, input_names=['x'],
                                    verbose=False, **dynamic)
        if dynamo:
            program.save(file)
    session = runtime.InferenceSession(file.getvalue(), providers=['CPUExecutionProvider'])
    for n in (2, 3):
        x = torch.randn(n, *shape[1:])
        expected, (actual, ) = model(x).detach(), session.run(None, {'x': x.numpy()})
        torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize('name', LAYERS)
def test_traces_serve_other_batch_sizes(name):
    build, shape = LAYERS[name]
    model = settled(build())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        traced = torch.jit.trace(model, torch.randn(shape))
    x = torch.randn(5, *shape[1:])
    torch.testing.assert_close(traced(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ['ConvWS', 'BCN', 'BCN of vectors', 'net'])
def test_exported_programs_with_a_dynamic_batch(name):
    build, shape = LAYERS[name]
    model = settled(build())
    batch = torch.export.Dim('batch', min=1, max=64)
    program = torch.export.export(model, (torch.randn(shape), ), dynamic_shapes=({0: batch}, ))
    for n in (1, 7):
        x = torch.randn(n, *shape[1:])
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('mode', ['micro_batch', 'large_batch'])
def test_fx_takes_the_layers_as_it_takes_those_of_torch(mode):
    """One node each; the traced network trains as the original does, its estimates included."""
    model = Net(mode)
    model.bcn1.update_rate = model.bcn2.update_rate = 0.2
    graph = fx.symbolic_trace(copy.deepcopy(model))
    assert [node.target for node in graph.graph.nodes if node.op == 'call_module'][:2] == ['conv1', 'bcn1']
    for _ in range(2):
        x = torch.randn(2, 3, 12, 10)
        assert torch.equal(graph(x), model(x))
    assert all(torch.equal(a, b) for a, b in zip(graph.state_dict().values(), model.state_dict().values(), strict=True))
    assert torch.equal(graph.eval()(x), model.eval()(x))


def test_feature_extractor_of_torchvision():
    feature_extraction = pytest.importorskip('torchvision.models.feature_extraction')
    model = settled(Net())
    extractor = feature_extraction.create_feature_extractor(model, ['bcn1', 'relu_1'])
    x = torch.randn(2, 3, 12, 10)
    features = extractor(x)
    torch.testing.assert_close(features['bcn1'], model.bcn1(model.conv1(x)))
    assert features['relu_1'].shape == (2, 8, 12, 10)


def test_a_subclass_that_pads_is_one_node_too():

    class Same(nn.Conv2d):

        def forward(self, x):
            return nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1)), self.weight, self.bias)

    model = settled(convert_model(nn.Sequential(Same(3, 8, 3), nn.BatchNorm2d(8)), torch.randn(1, 3, 8, 8)))
    x = torch.randn(2, 3, 8, 8)
    assert type(model[0]).__name__ == 'StandardizedSame'
    assert torch.equal(fx.symbolic_trace(model)(x), model(x))


# torch.func

def test_functional_call_and_gradients_of_functions():
    model, x = settled(Net()).double(), torch.randn(2, 3, 12, 10, dtype=torch.float64)
    parameters = dict(model.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x, )).square().sum()

    gradients = torch.func.grad(loss)(parameters, x)
    expected = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
    for name, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(gradients[name], value, rtol=0, atol=1e-9)
    per_image = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x[:, None])
    for name, value in gradients.items():
        torch.testing.assert_close(per_image[name].sum(0), value, rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.func.vmap(model)(x[None])[0], model(x))


def test_functional_call_trains_the_given_estimates():
    model, x = Net(), torch.randn(2, 3, 12, 10)
    given = {name: value.clone() for name, value in model.state_dict().items()}
    y = torch.func.functional_call(model, given, (x, ))
    assert torch.equal(model.bcn1.bn.running_mean, torch.zeros(8))
    assert given['bcn1.bn.running_mean'].any()
    assert torch.equal(model(x), y)
    assert torch.equal(model.bcn1.bn.running_mean, given['bcn1.bn.running_mean'])


@pytest.mark.parametrize('transform', [lambda f: torch.func.grad(lambda x: f(x).sum()), torch.func.vmap])
def test_updates_under_a_transform_are_refused_in_a_sentence(transform):
    model = Net()
    with pytest.raises(RuntimeError, match=r'torch.func do not allow; freeze them before: model.eval\(\)'):
        transform(model)(torch.randn(2, 2, 3, 12, 10) if transform is torch.func.vmap else torch.randn(2, 3, 12, 10))
    model.bcn1.bn.eval(), model.bcn2.bn.eval()
    torch.func.grad(lambda x: model(x).sum())(torch.randn(2, 3, 12, 10))
