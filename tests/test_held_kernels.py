"""Kernels that are standardized once per optimizer step: gradients equal to those of ordinary accumulation."""
import contextlib
import copy
import json
from pathlib import Path

import pytest
import torch
from conftest import run_ranks
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from small_training import Images, Model, Statistics, make_runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from wsbcn_mmseg.hooks.norm_statistics_hook import FILE
from wsbcn_mmseg.layers import BCN, AdaptiveConvWS, ConvCWN, ConvWN, ConvWS, ConvWSStdEps, HeldKernels
from wsbcn_mmseg.layers.standardized_subclass import standardized_subclass
from wsbcn_mmseg.runtime.checkpoint import safe_loading

pytestmark = pytest.mark.usefixtures('one_thread')
STEPS = 3  # per update


class Network(nn.Module):
    """Two convolutions and a norm; the second runs twice, a third one only in some passes."""

    def __init__(self, conv=ConvWS):
        super().__init__()
        self.first, self.norm = conv(3, 8, 3, padding=1), BCN(8)
        self.second, self.sometimes = conv(8, 8, 3, padding=1), conv(8, 8, 3)
        self.how, self.passes, self.runs = None, 0, (0, 1, 2)

    def block(self, x):
        return self.second(torch.relu(self.norm(self.first(x))))

    def forward(self, x):
        self.passes += 1
        y = self.block(x) if self.how is None else checkpoint(self.block, x, use_reentrant=self.how == 'reentrant')
        y = self.second(y)
        return self.sometimes(y) if (self.passes - 1) % STEPS in self.runs else y


def images(count=STEPS, **settings) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 2, 3, 7, 7, dtype=torch.float64, generator=generator).to(**settings)


def loss_of(model, x):
    return model(x).square().mean() / STEPS


def gradients(model, data, held: bool, loss_of=loss_of, backward=None, change=lambda model: None) -> dict:
    """Parameters' gradients after one update's micro-steps, and what else the passes change."""
    model = copy.deepcopy(model)
    torch.manual_seed(0)
    change(model)
    kernels = HeldKernels(model)
    for step, x in enumerate(data, 1):
        with kernels.micro_step(last=step == len(data)) if held else contextlib.nullcontext():
            loss = loss_of(model, x)
            loss.backward() if backward is None else backward(model, loss, x)
    assert not any(name in vars(module) for module in model.modules() for name in ('forward', 'effective_weight'))
    return {name: parameter.grad for name, parameter in model.named_parameters()} | dict(model.named_buffers())


def check(model, data=None, tolerance=1e-12, **settings) -> None:
    data = images() if data is None else data
    plain, held = (gradients(model, data, held, **settings) for held in (False, True))
    assert any(value is not None for value in plain.values())
    for name, value in plain.items():
        if value is None:
            assert held[name] is None, name
        else:
            largest = float(value.detach().abs().max())
            torch.testing.assert_close(held[name], value, rtol=tolerance, atol=tolerance * max(1, largest))


def adaptive(*args, **kwargs):
    conv = AdaptiveConvWS(*args, **kwargs)
    conv.adapt()
    return conv


class Same(nn.Conv2d):

    def forward(self, x):
        return self._conv_forward(nn.functional.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


def same(*args, **kwargs):
    conv = Same(*args[:3])
    conv.__class__, conv.eps = standardized_subclass(Same), 1e-5
    return conv


class Doubled(ConvWS):

    def forward(self, input):
        return 2 * super().forward(input)


def ablation(*args, **kwargs):
    return ConvWS(*args, **kwargs, center=False)


def circular(*args, **kwargs):
    return ConvWS(*args, **kwargs, padding_mode='circular')


@pytest.mark.parametrize('conv', [ConvWS, ablation, circular, ConvWSStdEps, ConvWN, ConvCWN, adaptive, same, Doubled],
                         ids=lambda conv: conv.__name__)
def test_gradients_are_those_of_ordinary_accumulation(conv):
    torch.manual_seed(0)
    check(Network(conv).double())


@pytest.mark.parametrize('how', ['reentrant', 'not reentrant'])
def test_under_activation_checkpointing(how):
    model = Network().double()
    model.how = how
    check(model, images().requires_grad_())


@pytest.mark.parametrize('runs', [(0, ), (1, ), (2, ), ()], ids=str)
def test_layers_that_run_in_some_passes(runs):
    model = Network().double()
    model.runs = runs
    check(model)


@pytest.mark.parametrize('frozen', ['first', 'second', 'first.weight', 'first.bias'])
def test_frozen_layers(frozen):
    model = Network().double()
    model.get_submodule(frozen).requires_grad_(False) if '.' not in frozen else \
        model.get_parameter(frozen).requires_grad_(False)
    check(model)


def test_a_teacher_that_changes_in_every_pass():
    class Distilled(Network):

        def forward(self, x):
            with torch.no_grad():
                self.sometimes.weight.mul_(self.second.weight).add_(1)
            return super().forward(x)

    model = Distilled().double()
    model.sometimes.requires_grad_(False)
    check(model)


def test_kernels_that_two_layers_share():
    model = Network().double()
    model.sometimes.weight = model.second.weight
    check(model)


@pytest.mark.parametrize('change', [
    nn.utils.parametrizations.spectral_norm, lambda conv: prune.random_unstructured(conv, 'weight', .5)],
    ids=['parametrized', 'pruned'])
def test_layers_that_are_left_as_they_are(change):
    check(Network().double(), change=lambda model: change(model.second))


def test_a_forward_pass_set_on_a_layer_stays():
    model = Network().double()
    own = model.second.forward = lambda x: nn.functional.conv2d(x, model.second.weight, padding=1)
    with HeldKernels(model).micro_step(last=True):
        loss_of(model, images()[0]).backward()
    assert vars(model.second)['forward'] is own


def test_two_backward_passes_in_a_micro_step_and_derivatives_of_gradients():
    def twice(model, loss, x):
        loss.backward()
        loss_of(model, x + 1).backward()

    def penalized(model, x):
        x = x.clone().requires_grad_()
        loss = loss_of(model, x)
        slope, = torch.autograd.grad(loss, x, create_graph=True)
        return loss + slope.square().sum()

    model = Network().double()
    model.norm = nn.GroupNorm(4, 8).double()
    check(model, backward=twice)
    check(model, loss_of=penalized)
    check(model, backward=lambda model, loss, x: loss.backward(create_graph=True))


def test_losses_on_kernels_and_on_raw_weights():
    def regularized(model, x):
        return loss_of(model, x) + model.first.standardized_weight()[:4].pow(3).sum() + model.second.weight.pow(4).sum()

    check(Network().double(), loss_of=regularized)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_under_autocast(dtype):
    def loss(model, x):
        with torch.autocast('cpu', torch.bfloat16):
            return loss_of(model, x)

    torch.manual_seed(0)
    check(Network().to(dtype), images(dtype=dtype), 2e-6, loss_of=loss)  # sums in float32


@pytest.mark.parametrize('overflow', [None, 0, STEPS - 1], ids=str)
def test_scaled_gradients_and_steps_that_the_scaler_skips(overflow):
    torch.manual_seed(0)
    start, results = Network().double(), []
    for held in (False, True):
        model = copy.deepcopy(start)
        optimizer, kernels = torch.optim.SGD(model.parameters(), .1), HeldKernels(model)
        scaler = torch.amp.GradScaler('cpu', init_scale=2.**10)
        for step, x in enumerate(images()):
            with kernels.micro_step(step == STEPS - 1) if held else contextlib.nullcontext():
                loss = loss_of(model, x) * (float('inf') if step == overflow else 1)
                scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), .5)
        scaler.step(optimizer)
        scaler.update()
        results.append((model.state_dict(), norm, scaler.get_scale()))
    (plain, norm, scale), (other, other_norm, other_scale) = results
    assert other_scale == scale == (2.**10 if overflow is None else 2.**9)
    assert plain['first.weight'].equal(start.first.weight) == (overflow is not None)
    torch.testing.assert_close(other, plain, rtol=1e-12, atol=1e-12)
    if overflow is None:
        torch.testing.assert_close(other_norm, norm, rtol=1e-12, atol=0)


def test_a_window_that_is_cut_short_and_one_that_is_discarded():
    model = Network().double()
    expected = gradients(model, images(2), False)
    kernels = HeldKernels(model)
    with kernels.micro_step(last=False):
        loss_of(model, images(5)[4]).backward()
    kernels.discard()
    model.zero_grad()
    model.load_state_dict(Network().double().state_dict() | {
        name: value for name, value in model.state_dict().items() if 'norm' not in name})
    model.passes = 0
    for x in images(2):
        with kernels.micro_step(last=False):
            loss_of(model, x).backward()
    assert model.first.weight.grad is None
    kernels.finish()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-12, atol=1e-12)
    kernels.finish()  # there is nothing left
    torch.testing.assert_close(model.first.weight.grad, expected['first.weight'], rtol=1e-12, atol=1e-12)


def test_evaluation_saving_and_copies_between_micro_steps():
    model = Network().double()
    keys, kernels, x = set(model.state_dict()), HeldKernels(model), images()[0]
    with kernels.micro_step(last=False):
        loss_of(model, x).backward()
    assert set(model.state_dict()) == keys
    expected = copy.deepcopy(model).eval()(x)
    assert model.eval()(x).equal(expected)
    model.train()
    with kernels.micro_step(last=True):
        loss_of(model, x).backward()
    assert model.first.weight.grad is not None


def test_weights_that_change_between_micro_steps_are_an_error():
    model = Network().double()
    kernels, optimizer = HeldKernels(model), torch.optim.SGD(model.parameters(), .1)
    with kernels.micro_step(last=False):
        loss_of(model, images()[0]).backward()
    optimizer.step()
    nn.init.ones_(model.first.weight)
    with pytest.raises(RuntimeError, match='weights have changed .* last=True'):
        kernels.begin(last=False)
    kernels.discard()
    with kernels.micro_step(last=True):
        loss_of(model, images()[0]).backward()


def test_an_exception_in_a_micro_step_leaves_the_network_as_it_was():
    model = Network().double()
    with pytest.raises(ZeroDivisionError), HeldKernels(model).micro_step(last=False):
        raise ZeroDivisionError
    assert 'forward' not in vars(model.first)


@pytest.mark.parametrize('wrap, message', [(torch.compile, 'compiled'), (nn.DataParallel, 'DistributedDataParallel')])
def test_what_cannot_hold_kernels_is_refused(wrap, message):
    with pytest.raises(ValueError, match=message):
        HeldKernels(wrap(Network()))


# Several processes

def _train_two_ranks(rank, find_unused, runs):
    torch.manual_seed(0)
    start = Network().double()
    start.runs = runs
    data, results = images(12)[rank::2], []
    for held in (False, True):
        model = DistributedDataParallel(copy.deepcopy(start), find_unused_parameters=find_unused)
        optimizer = torch.optim.SGD(model.parameters(), .1, momentum=.9)
        kernels = HeldKernels(model)
        for step, x in enumerate(data):
            last = step % STEPS == STEPS - 1
            with contextlib.nullcontext() if last else model.no_sync(), \
                    kernels.micro_step(last) if held else contextlib.nullcontext():
                loss_of(model, x).backward()
            if last:
                nn.utils.clip_grad_norm_(model.parameters(), .01)
                optimizer.step()
                optimizer.zero_grad()
        results.append(model.module.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-11, atol=1e-11)
    weight = results[1]['first.weight']
    other = weight.clone()
    torch.distributed.broadcast(other, 0)
    assert torch.equal(weight, other), 'gradients were reduced'
    assert not torch.equal(weight, start.first.weight)

    with kernels.micro_step(last=False), model.no_sync():
        loss_of(model, data[0]).backward()
    with pytest.raises(RuntimeError, match='not reduced over the processes'):
        kernels.finish()


def _in_two_ranks(rank, folder):
    _train_two_ranks(rank, False, (0, 1, 2))
    _train_two_ranks(rank, True, (0, 1))  # unused parameters are reduced before the backward pass
    _run_two_ranks(folder)


def test_in_two_processes_with_and_without_the_hook(tmp_path):
    run_ranks(_in_two_ranks, str(tmp_path))


# In MMEngine's runner

class Watch(Hook):
    """Whether kernels are held in the forward pass, and the state after each iteration."""
    priority = 'LOW'

    def __init__(self):
        self.held, self.free = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        model = getattr(runner.model, 'module', runner.model)
        self.held.append('effective_weight' in vars(model.backbone[0]))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        model = getattr(runner.model, 'module', runner.model)
        self.free.append('effective_weight' not in vars(model.backbone[0]))


def train(folder, held: bool, model=None, counts=3, **settings) -> tuple[BaseModel, Watch]:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    optim_wrapper = dict(optimizer=dict(type='SGD', lr=.1, momentum=.9), accumulative_counts=counts,
                         clip_grad=dict(max_norm=.5))
    with safe_loading():
        runner, _ = make_runner(folder, dict(type='HeldKernelsHook') if held else None, optim_wrapper=optim_wrapper,
                                model=model or Model().double(), dataset=DoubleImages(), **settings)
        watch = Watch()
        runner.register_hook(watch)
        runner.train()
    return runner.model, watch


class DoubleImages(Images):

    def __getitem__(self, index):
        return dict(images=self.images[index].double())


def assert_same(model, other) -> None:
    for name, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('iterations', [6, 7, 8])  # 7 and 8: the last window is cut short
def test_the_hook_trains_as_without_it(iterations, tmp_path):
    validation = dict(val_dataloader=dict(dataset=DoubleImages(), batch_size=1, num_workers=0,
                                          sampler=dict(type='DefaultSampler')),
                      val_cfg=dict(type='ValLoop'), val_evaluator=Evaluator(Statistics()))
    plain, _ = train(tmp_path / 'plain', False, iterations=iterations, **validation)
    model, watch = train(tmp_path / 'held', True, iterations=iterations, **validation)
    assert_same(plain, model)
    assert watch.held == [True] * iterations
    assert watch.free == [True] * iterations


def test_the_hook_resumes_in_the_middle_of_a_window_as_without_it(tmp_path):
    """The gradients collected before are lost in both."""
    for name, held in (('plain', False), ('held', True)):
        train(tmp_path / name, held, iterations=3, counts=2)
    plain, _ = train(tmp_path / 'plain', False, iterations=6, counts=2, resume=True)
    model, _ = train(tmp_path / 'held', True, iterations=6, counts=2, resume=True)
    assert_same(plain, model)


def test_the_hook_does_nothing_without_accumulation(tmp_path):
    _, watch = train(tmp_path, True, counts=1)
    assert not any(watch.held)


def test_watched_gradients_are_the_same_with_the_hook(tmp_path):
    watched = []
    for name in ('plain', 'held'):
        hooks = [dict(type='NormStatisticsHook', interval=1, gradients=True), dict(type='HeldKernelsHook')]
        runner, _ = make_runner(tmp_path / name, hooks[0], model=_seeded(), optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=.1), accumulative_counts=3))
        if name == 'held':
            runner.register_hook(hooks[1])
        runner.train()
        watched.append([json.loads(line) for line in (tmp_path / name / FILE).read_text().splitlines()])
    plain, held = watched
    shares = [line['layers']['head.0']['gradient_eq11'] for line in plain]
    assert len(shares) == 6
    assert shares == pytest.approx([line['layers']['head.0']['gradient_eq11'] for line in held], rel=1e-4)


def _seeded() -> Model:
    torch.manual_seed(0)
    return Model()


def test_the_hook_completes_gradients_of_layers_that_did_not_run_last(tmp_path):
    """Before they are clipped."""
    class Skipping(Model):
        passes = 0

        def forward(self, images, mode='tensor'):
            self.passes += 1
            x = torch.stack(list(images))
            y = self.backbone(x)
            y = y if self.passes % 3 == 0 else self.head(y)
            return dict(loss=y.square().mean() + 0 * sum(p.sum() for p in self.head[1:].parameters()))

    torch.manual_seed(0)
    start = Skipping().double()
    plain, _ = train(tmp_path / 'plain', False, copy.deepcopy(start))
    model, _ = train(tmp_path / 'held', True, copy.deepcopy(start))
    assert not model.head[0].weight.equal(start.head[0].weight)
    assert_same(plain, model)


def _run_two_ranks(folder):
    settings = dict(launcher='pytorch', cfg=dict(model_wrapper_cfg=dict(
        type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)))
    models = [train(Path(folder, str(held)), held, **settings)[0] for held in (False, True)]
    assert_same(*models)
