"""save_memory: gradients and statistics of the plain network, less memory, whatever is done with the network."""
import copy
import gc
import io
import pickle
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import run_ranks, settle
from small_segmentation import run, write_config
from torch import nn
from torch.utils.checkpoint import checkpoint

import wsbcn_mmseg.memory.saving as saving
from wsbcn_mmseg import fuse_relu, save_memory
from wsbcn_mmseg.layers import BCN, ConvWS, HeldKernels, SwitchableNorm
from wsbcn_mmseg.memory.segment import Segment
from wsbcn_mmseg.ops import cpp

pytestmark = pytest.mark.usefixtures('one_thread')
LEVELS = ('light', 'strong')
NORMS = {'BCN': BCN, 'BCN large-batch': partial(BCN, mode='large_batch'), 'BN': nn.BatchNorm2d,
         'GN': partial(nn.GroupNorm, 4), 'SN': SwitchableNorm,
         'BN cumulative': partial(nn.BatchNorm2d, momentum=None)}
NETWORKS = [('BCN', ConvWS), ('BCN', nn.Conv2d), ('BCN large-batch', ConvWS), ('GN', ConvWS), ('GN', nn.Conv2d),
            ('BN', nn.Conv2d), ('BN cumulative', nn.Conv2d), ('SN', ConvWS)]


class Bottleneck(nn.Module):
    """A residual block."""

    def __init__(self, norm=BCN, conv=ConvWS, width=8, drop=0.):
        super().__init__()
        self.conv1, self.norm1 = conv(4 * width, width, 1, bias=False), norm(width)
        self.conv2, self.norm2 = conv(width, width, 3, padding=1, bias=False), norm(width)
        self.conv3, self.norm3 = conv(width, 4 * width, 1, bias=True), norm(4 * width)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(drop)

    def forward(self, x):
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.drop(self.relu(self.norm2(self.conv2(y))))
        y = self.norm3(self.conv3(y))
        y += x
        return self.relu(y)


class TwoBlocks(nn.Module):
    """Calls its blocks by hand."""

    def __init__(self, *blocks, order=(0, 1)):
        super().__init__()
        self.blocks, self.order = nn.ModuleList(blocks), order

    def forward(self, x):
        for index in self.order:
            x = self.blocks[index](x)
        return x


class Twice(nn.Module):
    """A block that runs its layers twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.again, self.norm = ConvWS(8, 8, 3, padding=1), ConvWS(8, 8, 1), BCN(8, 2)

    def forward(self, x):
        return x + self.norm(self.again(F.relu(self.norm(self.conv(F.relu(self.norm(self.conv(x))))))))


def network(norm='BCN', conv=ConvWS, blocks=4, **options):
    stem = nn.Sequential(conv(3, 32, 3, padding=1), nn.ReLU())
    body = nn.Sequential(*[Bottleneck(NORMS[norm], conv, **options) for _ in range(blocks)])
    model = nn.Sequential(stem, body)
    return model.double() if norm == 'SN' else settle(model)


def loss(model, x):
    y = model(x)
    return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum() + y.square().mean()


def images(number=2, size=9, channels=3, dtype=torch.float64):
    return torch.randn(number, channels, size, size, dtype=dtype)


def train(model, *batches, scale=1):
    """Gradients of inputs and parameters, and the state; one backward pass over all batches."""
    batches = [x.clone().requires_grad_() for x in batches]
    torch.manual_seed(1)
    sum(loss(model, x) for x in batches).backward()
    return ([x.grad for x in batches] + [p.grad for p in model.parameters() if p.requires_grad],
            {name: value.clone() for name, value in model.state_dict().items()})


def assert_same(plain, saving, batches=None, tolerance=1e-12, run=train):
    batches = [images()] if batches is None else batches
    (expected, expected_state), (gradients, state) = run(plain, *batches), run(saving, *batches)
    for wanted, got in zip(expected, gradients, strict=True):
        assert (got - wanted).norm() <= tolerance * (wanted.norm() + 1)
    assert list(state) == list(expected_state)
    for name, value in expected_state.items():
        torch.testing.assert_close(state[name], value, rtol=1e-12, atol=1e-12, msg=name)


def pair(model, level='strong', blocks=None):
    twin = copy.deepcopy(model)
    save_memory(twin, level, blocks)
    return model, twin


@pytest.fixture
def segments(monkeypatch):
    """The segments that were run."""
    made = []

    class Noted(saving.Segment):

        def run(self, *args):
            made.append(self.modules)
            return super().run(*args)

    monkeypatch.setattr(saving, 'Segment', Noted)
    return made


@pytest.mark.parametrize('level', LEVELS)
@pytest.mark.parametrize(('norm', 'conv'), NETWORKS)
def test_gradients_and_statistics_are_those_of_the_plain_network(norm, conv, level, segments):
    assert_same(*pair(network(norm, conv), level))
    assert len(segments) == 2


@pytest.mark.parametrize('fused_relu', [False, True])
@pytest.mark.parametrize('impl', ['reference', 'fused', 'auto'])
def test_every_implementation(impl, fused_relu, monkeypatch):
    monkeypatch.setenv('WSBCN_IMPL', impl)
    plain, twin = pair(network())
    if fused_relu:
        assert fuse_relu(twin, images()) == [f'1.{block}.norm{i}' for block in range(4) for i in (1, 2)]
    assert_same(plain, twin)


@pytest.mark.skipif(cpp.WHY_NOT is not None, reason=str(cpp.WHY_NOT))
def test_replayed_cpp_kernels_give_the_same_bits():
    """So that ReLU cuts the same values."""
    x, args = torch.randn(2, 8, 7, 5), [torch.rand(8) + .5 for _ in range(4)] + [torch.rand(2) + .5 for _ in range(2)]
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.contiguous(memory_format=layout)
        y, kept = torch.ops.wsbcn.batch_channel_norm_forward(given, *args, True, False, torch.tensor(.1), 1e-5, True,
                                                             None)
        assert torch.equal(cpp.repeated_cpp(True, [given, kept]), y)


@pytest.mark.parametrize('level', LEVELS)
def test_together_with_held_kernels(level):
    def accumulate(model, *batches):
        kernels, batches = HeldKernels(model), [x.clone().requires_grad_() for x in batches]
        for number, x in enumerate(batches, 1):
            with kernels.micro_step(number == len(batches)):
                loss(model, x).backward()
        return [p.grad for p in model.parameters()], {name: value.clone() for name, value in model.state_dict().items()}

    assert_same(*pair(network(), level), [images(1), images(1), images(2)], run=accumulate)


@pytest.mark.parametrize(('level', 'most'), [('light', .75), ('strong', .5)])
@pytest.mark.parametrize(('norm', 'conv'), [('BCN', ConvWS), ('GN', nn.Conv2d), ('BN', nn.Conv2d)])
def test_less_lives_after_the_forward_pass(norm, conv, level, most):
    from wsbcn_mmseg.benchmarks.memory import activation_bytes
    plain, twin = pair(network(norm, conv, blocks=6).float(), level)
    x = images(1, 64, dtype=torch.float32)
    live = []
    for model in (plain, twin):
        loss(model[1], model[0](x).detach()).backward()
        inputs = model[0](x).detach()
        live.append(activation_bytes(lambda model=model, inputs=inputs: model[1](inputs).sum(), 'cpu')[0])
    assert live[1] <= most * live[0]


def test_memory_is_given_back_without_the_garbage_collector(monkeypatch):
    made = []

    def make(*args):
        segment = Segment(*args)
        made.append(weakref.ref(segment))
        return segment

    monkeypatch.setattr(saving, 'Segment', make)
    _, twin = pair(network())
    x = images()
    gc.collect()
    gc.disable()
    try:
        loss(twin, x).backward()
        assert len(made) == 2
        assert not any(segment() for segment in made)
        y = twin(x)
        assert made[-1]() is not None
        del y  # without a backward pass
        assert not any(segment() for segment in made)
    finally:
        gc.enable()


@pytest.mark.parametrize('level', LEVELS)
def test_a_layer_that_runs_several_times_in_a_segment(level):
    assert_same(*pair(settle(nn.Sequential(Twice(), Twice())), level), [images(channels=8)])


def test_a_block_that_is_used_twice():
    model = settle(TwoBlocks(Bottleneck(), Bottleneck(), order=(0, 1, 0, 0)))
    assert_same(*pair(model), [images(channels=32)])
    shared = Bottleneck()
    assert_same(*pair(settle(nn.Sequential(shared, Bottleneck(), shared))), [images(channels=32)])


def test_several_forward_passes_before_a_backward_pass():
    assert_same(*pair(network()), [images(), images(1, 7), images()])


def test_gradient_accumulation():
    plain, twin = pair(network())
    for _ in range(3):
        assert_same(plain, twin, [images()])


def test_dropout_draws_the_same_masks():
    plain, twin = pair(network(drop=.5))
    assert_same(plain, twin)
    train(plain, x := images())
    after = torch.get_rng_state()
    train(twin, x)
    assert torch.equal(torch.get_rng_state(), after)  # the recomputation draws from a stream of its own


@pytest.mark.parametrize('norm', ['BCN', 'GN', 'BN'])
def test_autocast(norm):
    def run(model, x):
        x = x.clone().requires_grad_()
        with torch.autocast('cpu', torch.bfloat16):
            value = loss(model, x)
        value.backward()
        return [x.grad, *[p.grad for p in model.parameters()]], model.state_dict()

    plain, twin = pair(network(norm, ConvWS if norm == 'BCN' else nn.Conv2d).float())
    assert_same(plain, twin, [images(dtype=torch.float32)], tolerance=.02, run=run)


def test_convolutions_whose_kernel_has_the_shape_of_their_input_under_autocast():
    block = nn.Sequential(nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Conv2d(2, 4, 3, padding=1))
    model = nn.Sequential(block)
    for parameter in block[0].parameters():
        parameter.requires_grad_(False)
    plain, twin = pair(model, blocks='0')

    def run(model, x):
        x = x.clone().requires_grad_()
        with torch.autocast('cpu', torch.bfloat16):
            value = model(x).float().square().sum()
        value.backward()
        return [x.grad], {}

    assert_same(plain, twin, [images(2, 3, 4, torch.float32)], tolerance=1e-6, run=run)


def test_half_precision_and_channels_last():
    for change in (dict(dtype=torch.bfloat16), dict(memory_format=torch.channels_last)):
        plain, twin = pair(network().float().to(**change))
        x = images(dtype=torch.float32).to(**change)
        assert_same(plain, twin, [x], tolerance=.05 if 'dtype' in change else 1e-5)


@pytest.mark.parametrize('with_gradients', [True, False])
def test_in_evaluation_and_without_gradients_blocks_run_as_before(with_gradients, segments):
    plain, twin = pair(network())
    x = images()
    with torch.set_grad_enabled(with_gradients):
        if with_gradients:
            plain.eval(), twin.eval()
        assert torch.equal(plain(x), twin(x))
    assert not segments


def test_frozen_blocks_are_not_recorded(segments):
    plain, twin = pair(network())
    for model in (plain, twin):
        model.requires_grad_(False)
        model[1][3].requires_grad_(True)
    x = images()
    for model in (plain, twin):
        loss(model, x).backward()
    assert [len(modules) for modules in segments] == [1]
    for wanted, got in zip(plain[1][3].parameters(), twin[1][3].parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)


@pytest.mark.parametrize('norm', ['BCN', 'BN'])
def test_frozen_statistics(norm):
    model = network(norm, nn.Conv2d)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert_same(*pair(model))


@pytest.mark.parametrize('reentrant', [True, False])
@pytest.mark.parametrize('inside', [True, False])
def test_together_with_checkpointing(inside, reentrant):
    class Checkpointed(Bottleneck):

        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=reentrant)

    class Outer(nn.Module):

        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(Bottleneck(), Bottleneck())

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=reentrant)

    model = nn.Sequential(Checkpointed(), Checkpointed()) if inside else Outer()
    plain, twin = pair(settle(model))
    assert_same(plain, twin, [images(channels=32)])


@pytest.mark.parametrize('with_cp', [True, False])
@pytest.mark.parametrize('depth', [18, 50])
def test_backbones_of_mmsegmentation(depth, with_cp):
    from mmseg.models.backbones import ResNet
    model = ResNet(depth, base_channels=4, stem_channels=4, out_indices=(3, ), with_cp=with_cp,
                   norm_cfg=dict(type='BCN', min_channels_per_group=1), conv_cfg=dict(type='ConvWS'))
    settle(model)
    model.forward = lambda x: type(model).forward(model, x)[0]
    twin = copy.deepcopy(model)
    twin.forward = lambda x: type(twin).forward(twin, x)[0]
    assert len(save_memory(twin, 'strong')) == {18: 8, 50: 16}[depth]
    assert_same(model, twin, [images(size=33)], tolerance=1e-9)


def test_an_exception_in_the_middle():
    plain, twin = pair(network())
    handle = twin[1][1].conv2.register_forward_pre_hook(lambda *_: 1 / 0)
    before = copy.deepcopy(twin.state_dict())
    with pytest.raises(ZeroDivisionError):
        twin(images())
    handle.remove()
    assert not saving.inside_segment()
    twin.load_state_dict(before)
    assert_same(plain, twin)


def test_backward_twice_and_second_derivatives():
    plain, twin = pair(network('GN', nn.Conv2d))
    x = images()
    results = []
    for model in (plain, twin):
        value, inputs = loss(model, x), list(model.parameters())
        first = torch.autograd.grad(value, inputs, retain_graph=True)
        second = torch.autograd.grad(value, inputs, create_graph=True)
        penalty = torch.autograd.grad(sum(g.square().sum() for g in second), inputs, allow_unused=True)
        results.append([*first, *second, *[g for g in penalty if g is not None]])
    for wanted, got in zip(*results, strict=True):
        assert (got - wanted).norm() <= 1e-10 * wanted.norm().clamp_min(1e-3)


def test_copies_pickles_and_states(segments):
    _, twin = pair(network())
    state = twin.state_dict()
    assert list(state) == list(network().state_dict())
    buffer = io.BytesIO()
    torch.save(twin, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(twin), pickle.loads(pickle.dumps(twin)), torch.load(buffer, weights_only=False)]
    for twin_copy in copies:
        segments.clear()
        assert_same(copy.deepcopy(twin), twin_copy)
        modules = set(twin_copy.modules())
        assert len(segments) == 4
        assert all(module in modules for used in segments[2:] for module in used)


def test_another_call_replaces_what_the_first_has_set(segments):
    plain, twin = pair(network(), 'light')
    assert save_memory(twin, 'strong') == save_memory(twin, 'strong') == [f'1.{index}' for index in range(4)]
    assert_same(plain, twin)
    assert len(segments) == 2
    save_memory(twin, None)
    assert all('forward' not in vars(module) for module in twin.modules())


def test_a_forward_pass_that_others_have_replaced_is_kept():
    plain = network()
    calls = []

    def replace(model):
        block = model[1][0]
        block.forward = lambda x: (calls.append(1), 2 * type(block).forward(block, x))[1]

    twin = copy.deepcopy(plain)
    replace(plain)
    replace(twin)
    save_memory(twin)
    assert_same(plain, twin)
    assert len(calls) == 3  # and once in the recomputation
    save_memory(twin, None)
    assert 'forward' in vars(twin[1][0])


def test_blocks_with_several_inputs_and_outputs():
    class Pair(nn.Module):

        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, inputs, *, scale):
            x, y = inputs['x'], inputs['y']
            x, y = F.relu(self.left(x)) * scale, torch.sigmoid(self.right(y) + x)
            return {'x': x, 'y': y}

    class Network(nn.Module):

        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Pair(), Pair()])

        def forward(self, x):
            inputs = {'x': x, 'y': 2 * x}
            for block in self.blocks:
                inputs = block(inputs, scale=torch.tensor(3., dtype=x.dtype))
            return inputs['x'] + inputs['y']

    assert_same(*pair(Network().double()), [images(channels=4)])


def test_products_that_are_changed_in_place_are_computed_again():
    class Block(nn.Module):

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return x + self.second(F.elu(self.first(x).mul_(2), inplace=True))

    assert_same(*pair(nn.Sequential(Block(), Block()).double()), [images(channels=4)])


def test_inputs_that_are_changed_in_place_are_refused():
    class Block(Bottleneck):

        def forward(self, x):
            return super().forward(self.relu(x))

    _, twin = pair(nn.Sequential(Block(), Block()))
    with pytest.raises(RuntimeError, match='changes its input in place'):
        twin(images(channels=32, dtype=torch.float32).requires_grad_() * 1)


def test_outputs_that_are_changed_in_place_are_noticed():
    _, twin = pair(network())
    y = twin(images())
    value = y.sum()
    y.data.add_(1)
    y.mul_(2)
    with pytest.raises(RuntimeError, match='changed in place'):
        value.backward()


def test_a_block_that_takes_another_path_is_noticed():
    class Fickle(Bottleneck):
        runs = 0

        def forward(self, x):
            self.runs += 1
            return super().forward(x) if self.runs < 2 else x

    _, twin = pair(nn.Sequential(Fickle(), Fickle()))
    with pytest.raises(RuntimeError, match='another path'):
        twin(images(channels=32, dtype=torch.float32)).sum().backward()


def test_compiled_networks(segments):
    plain, twin = pair(network(blocks=2))
    compiled = torch.compile(twin, backend='eager')
    x = images()
    expected, _ = train(plain, x)
    x = x.clone().requires_grad_()
    loss(compiled, x).backward()
    assert len(segments) == 1
    for wanted, got in zip(expected, [x.grad, *[p.grad for p in twin.parameters()]], strict=True):
        assert (got - wanted).norm() <= 1e-12 * wanted.norm().clamp_min(1e-3)


def test_traced_and_exported_networks():
    plain, twin = pair(network(blocks=2).float())
    x = images(dtype=torch.float32)
    traced = torch.fx.symbolic_trace(twin)
    assert torch.equal(traced(x), plain(x))
    plain.eval(), twin.eval()
    expected = plain(x)
    torch.testing.assert_close(torch.jit.trace(twin, x)(x), expected)
    torch.testing.assert_close(torch.export.export(twin, (x, )).module()(x), expected)
    gradients = torch.func.grad(lambda p: torch.func.functional_call(twin, p, x).sum())(dict(twin.named_parameters()))
    assert len(gradients) == len(list(twin.parameters()))


def _train_in_ranks(rank, level, find_unused):
    plain, twin = pair(network().float(), level)
    unused = nn.Linear(2, 2)
    models = []
    for model in (plain, twin):
        model.unused = unused if find_unused else nn.Identity()
        model.forward = lambda x, model=model: model[1](model[0](x))
        models.append(nn.parallel.DistributedDataParallel(model, broadcast_buffers=False,
                                                          find_unused_parameters=find_unused))
    for step in range(2):
        torch.manual_seed(10 * rank + step)
        x = images(dtype=torch.float32)
        for model in models:
            loss(model, x).backward()
    for (name, wanted), (_, got) in zip(plain.named_parameters(), twin.named_parameters(), strict=True):
        assert wanted.grad is None or torch.allclose(got.grad, wanted.grad, rtol=1e-3, atol=1e-3), name
    for name, value in plain.state_dict().items():
        assert torch.allclose(twin.state_dict()[name], value), name


def test_two_ranks():
    run_ranks(_train_in_ranks, 'strong', True)


def test_blocks_are_found_or_named():
    model = nn.Sequential(network(blocks=2), nn.Sequential(nn.Conv2d(32, 8, 1), nn.Conv2d(8, 8, 1)))
    assert save_memory(model) == ['0.1.0', '0.1.1']
    assert save_memory(model, blocks=['0.1.*', model[1]]) == [
        f'0.1.{name}' for name, _ in model[0][1].named_modules() if name] + ['1']
    assert save_memory(model, blocks='1') == ['1']
    with pytest.raises(ValueError, match=r"no module '0\.2'.*0\.1"):
        save_memory(model, blocks=['0.2'])
    with pytest.raises(ValueError, match='no repeated blocks'):
        save_memory(model[1])
    with pytest.raises(ValueError, match='expected an nn.Module, got list'):
        save_memory([model])
    with pytest.raises(ValueError, match="level must be one of .*'weak'"):
        save_memory(model, 'weak')


def test_training_from_the_command_line(small_data, tmp_path, scope_of_its_own):
    config = write_config(tmp_path / 'config.py', small_data)
    arguments = config, '--bcn-ws', '--work-dir', tmp_path / 'run', '--save-memory', 'strong'
    code, printed = run('train.py', *arguments)
    assert code is None, printed
    assert 'SaveMemoryHook: 8 blocks save memory (strong): backbone.layer1.0 ... backbone.layer4.1' in printed
    code, printed = run('train.py', *arguments, '--resume', '--cfg-options', 'train_cfg.max_iters=3')
    assert code is None, printed
    assert '8 blocks save memory (strong)' in printed
    saved = torch.load(tmp_path / 'run' / 'iter_3.pth', weights_only=False)
    assert saved['state_dict']['backbone.layer1.0.bcn1.bn.num_batches_tracked'] == 3
    code, printed = run('test.py', tmp_path / 'run' / 'config.py', tmp_path / 'run' / 'iter_3.pth')
    assert code is None, printed


def test_a_network_without_blocks_ends_the_command_with_a_sentence(small_data, tmp_path, scope_of_its_own):
    config = write_config(tmp_path / 'config.py', small_data,
                          "custom_hooks = [dict(type='SaveMemoryHook', blocks='backbone.stage9')]")
    code, _ = run('train.py', config, '--work-dir', tmp_path / 'run')
    assert "SaveMemoryHook: the network has no module 'backbone.stage9'" in code


def test_other_blocks():
    class Inverted(nn.Module):
        """Expanding and depth-wise convolutions, squeeze and excitation, a linear layer, and a stochastic path."""

        def __init__(self):
            super().__init__()
            self.expand, self.depth = nn.Conv2d(4, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
            self.project = nn.utils.parametrizations.spectral_norm(nn.Conv2d(16, 4, 1))
            self.squeeze, self.mix, self.norm = nn.Conv2d(16, 16, 1), nn.Linear(4, 4), nn.LayerNorm(4)

        def forward(self, x):
            y = F.hardswish(self.depth(F.silu(self.expand(x))), inplace=True)
            y = y * torch.sigmoid(self.squeeze(F.adaptive_avg_pool2d(y, 1)))
            y = self.mix(self.norm(self.project(y).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
            return x + y * torch.rand(len(x), 1, 1, 1, dtype=x.dtype).round()

    for level in LEVELS:
        assert_same(*pair(nn.Sequential(*[Inverted() for _ in range(4)]).double(), level), [images(channels=4)])


def test_tensors_that_are_saved_and_then_changed_into_the_output():
    class Block(nn.Module):

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            y = self.first(x)
            z = self.second(y)
            return y.add_(z)

    _, twin = pair(nn.Sequential(Block(), Block()))
    plain = nn.Sequential(Block(), Block())
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        plain(images(channels=4, dtype=torch.float32)).sum().backward()
    torch.manual_seed(0)
    x = images(channels=4, dtype=torch.float32).requires_grad_()
    y = x
    for block in twin:
        first = block.first(y)
        y = first + block.second(first)
    expected = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(torch.autograd.grad(twin(x).sum(), x), expected)
