"""The hook that watches norms, inside MMEngine's runner."""
import copy
import json
import re

import pytest
import torch
from conftest import run_ranks
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from small_training import Images, Model, make_runner
from torch import nn
from torch.utils.checkpoint import checkpoint

from wsbcn_mmseg.diagnostics.singularities import stat_diff
from wsbcn_mmseg.diagnostics.smoothness import gradient_shares
from wsbcn_mmseg.hooks import BCNUpdateRateHook, NormStatisticsHook
from wsbcn_mmseg.hooks.norm_samples import merge
from wsbcn_mmseg.hooks.norm_statistics_hook import FILE
from wsbcn_mmseg.layers import BCN, ConvWS
from wsbcn_mmseg.runtime.records import read_scalars

LAYERS = ['backbone.1', 'head.1', 'head.2']


def lines(work_dir) -> list[dict]:
    return [json.loads(line) for line in (work_dir / FILE).read_text().splitlines()]


def run(work_dir, hook, model=None, **settings) -> Runner:
    runner, _ = make_runner(work_dir, hook, model, **settings)
    runner.train()
    return runner


def test_merging_is_seeing_everything_at_once():
    values = [torch.randn(n, 3, dtype=torch.float64) + n for n in (4, 10)]

    def rows(x):
        return torch.stack([x.mean(0), x.var(0, correction=0), 2 * x.mean(0), 4 * x.var(0, correction=0), x.amax(0),
                            (x > 4).double().mean(0)])

    merged = merge(torch.stack([rows(x) for x in values]), torch.tensor([4., 10.], dtype=torch.float64))
    torch.testing.assert_close(merged, rows(torch.cat(values)))


def test_a_line_per_sample_and_scalars_in_the_run_s_own_log(tmp_path):
    run(tmp_path, NormStatisticsHook(interval=2))
    written = lines(tmp_path)
    assert [line['iter'] for line in written] == [2, 4, 6]
    assert all(list(line['layers']) == [*LAYERS[:2], 'head.2'] for line in written)
    assert 'histogram' not in written[0]
    scalars = [line for line in read_scalars(tmp_path) if 'norm/stat_diff' in line]
    assert [line['step'] for line in scalars] == [2, 4, 6]
    expected = sum(layer['stat_diff'] for layer in written[-1]['layers'].values()) / 3
    assert scalars[-1]['norm/stat_diff'] == pytest.approx(expected, rel=1e-4)


def test_the_first_iteration_of_each_interval(tmp_path):
    """Figure 4 is about the first training iteration of each epoch."""
    run(tmp_path, NormStatisticsHook(interval=2, first=True))
    assert [line['iter'] for line in lines(tmp_path)] == [1, 3, 5]


class OneLayer(Model):
    """A norm with known inputs: the images themselves, of three channels."""

    def __init__(self, norm, segment=None):
        super().__init__()
        del self.backbone, self.head
        self.scale, self.norm, self.segment = nn.Parameter(torch.ones(1)), norm, segment

    def forward(self, images, mode='tensor'):
        x = torch.stack(list(images)) * self.scale
        y = self.norm(x) if self.segment is None else checkpoint(self.norm, x, use_reentrant=self.segment)
        return dict(loss=y.relu_().square().mean()) if mode == 'loss' else [y]


@pytest.mark.parametrize('norm', [nn.BatchNorm2d(3), nn.GroupNorm(1, 3), BCN(3, num_groups=1),
                                  nn.InstanceNorm2d(3, affine=True)], ids=lambda norm: type(norm).__name__)
def test_numbers_against_direct_computation(norm, tmp_path):
    """Two images per step, one sample; the third channel is shifted far below zero after the norm."""
    norm = copy.deepcopy(norm)
    if not isinstance(norm, BCN):
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([1., .01, 1.]))
            norm.bias.copy_(torch.tensor([0., 0., -100.]))
    model = OneLayer(norm)
    x = torch.stack([Images()[i]['images'] for i in range(2)])
    with torch.no_grad():
        y = copy.deepcopy(norm)(x)
    run(tmp_path, NormStatisticsHook(interval=1), model, iterations=1, batch_size=2)
    layer, = lines(tmp_path)[0]['layers'].values()
    groups = getattr(norm, 'num_groups', 1)
    assert layer['stat_diff'] == pytest.approx(
        stat_diff(x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0), groups).mean().item(), rel=1e-4)
    assert layer['eliminated'] == pytest.approx((y.amax((0, 2, 3)) < 0).float().mean().item())
    scale = y.std((0, 2, 3))
    rate = (y > 0).float().mean((0, 2, 3))
    small = (scale < .1 * scale.median()) | (rate < .1 * rate.median())
    assert layer['under_represented'] == pytest.approx(small.float().mean().item())
    if isinstance(norm, nn.BatchNorm2d):
        assert layer['eliminated'] == pytest.approx(1 / 3)
        assert layer['under_represented'] == pytest.approx(2 / 3)
        assert layer['distance_mean'] < 1e-4
        assert layer['distance_scale'] < 1e-3


def test_the_window_remembers_maxima(tmp_path):
    """A channel counts as eliminated only while every sample of the window says so."""

    class Shifting(nn.GroupNorm):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x) - (100 if self.calls > 1 else 0)

    run(tmp_path, NormStatisticsHook(interval=1, window=2), OneLayer(Shifting(1, 3)), iterations=4)
    assert [line['layers']['norm']['eliminated'] for line in lines(tmp_path)] == [0, 0, 1, 1]


@pytest.mark.parametrize('settings', [{}, dict(optim_wrapper=dict(
    type='OptimWrapper', accumulative_counts=2, optimizer=dict(type='SGD', lr=.1)))], ids=['plain', 'accumulating'])
def test_training_is_the_same_to_the_last_bit(settings, tmp_path):
    torch.manual_seed(1)
    model = Model()
    states = []
    for name, hook in (('without', None), ('with', NormStatisticsHook(1, gradients=True, histograms='head.1'))):
        torch.manual_seed(2)
        runner = run(tmp_path / name, hook, copy.deepcopy(model), **settings)
        states.append(runner.model.state_dict())
        assert not any(m._forward_hooks for m in runner.model.modules())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize('reentrant', [True, False])
def test_recomputation_is_not_counted(reentrant, tmp_path):
    numbers = []
    for name, segment in (('plain', None), ('checkpointed', reentrant)):
        run(tmp_path / name, NormStatisticsHook(interval=1), OneLayer(BCN(3), segment), iterations=3)
        numbers.append([line['layers'] for line in lines(tmp_path / name)])
    assert numbers[0] == numbers[1]


class Checkpointed(Model):

    def forward(self, images, mode='tensor'):
        y = checkpoint(lambda x: self.head(self.backbone(x)), torch.stack(list(images)), use_reentrant=False)
        return dict(loss=y.square().mean()) if mode == 'loss' else [y]


@pytest.mark.parametrize('cls', [Model, Checkpointed])
def test_gradient_shares_are_those_of_the_gradient(cls, tmp_path):
    torch.manual_seed(1)
    model = cls()
    twin = copy.deepcopy(model)
    run(tmp_path, NormStatisticsHook(interval=1, gradients=True), model, iterations=1)
    written = lines(tmp_path)[0]['layers']

    conv = twin.head[0]
    weight = conv.standardized_weight().detach().requires_grad_()
    x = twin.backbone(torch.stack([Images()[0]['images']])).detach()
    twin.head[2](twin.head[1](torch.nn.functional.conv2d(x, weight, conv.bias))).square().mean().backward()
    expected = gradient_shares(weight.detach(), weight.grad).nanmean(0)
    got = [written['head.0'][f'gradient_{part}'] for part in ('eq12', 'eq11', 'left')]
    assert got == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-6)
    assert sum(got) == pytest.approx(1, rel=1e-5)
    assert isinstance(conv, ConvWS)


def test_histograms_of_two_channels(tmp_path):
    run(tmp_path, NormStatisticsHook(interval=3, histograms='head.1'))
    histogram = lines(tmp_path)[0]['histogram']
    assert len(histogram['channels']) == 2
    for place in ('before', 'after'):
        assert [sum(counts) for counts in histogram[place]['counts']] == [16, 16]  # 4 x 4 pixels of one image
    with pytest.raises(ValueError, match="histograms='no' names no norm; there are backbone.1"):
        run(tmp_path / 'no', NormStatisticsHook(histograms='no'))


def _two_ranks(rank, folder):
    torch.manual_seed(0)
    model = OneLayer(nn.GroupNorm(1, 3))
    runner, _ = make_runner(folder, NormStatisticsHook(interval=1), model, iterations=1, batch_size=2,
                            cfg=dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None,
                                                            broadcast_buffers=False)))
    runner.train()


def test_two_ranks_count_as_one_batch(tmp_path):
    """The samples of both ranks are merged; one file, one line."""
    run_ranks(_two_ranks, tmp_path)
    line, = lines(tmp_path)
    x = Images().images[:4]  # two on each rank
    expected = stat_diff(x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0), 1).item()
    assert line['layers']['norm']['stat_diff'] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize('arguments, match', [
    (dict(interval=0), 'interval must be a whole number of at least 1'),
    (dict(window=0), 'window must be a whole number of at least 1'),
    (dict(momentum=0), r'in \(0, 1\]'), (dict(fraction=2), r'in \(0, 1\]')])
def test_numbers_out_of_range(arguments, match):
    with pytest.raises(ValueError, match=match):
        NormStatisticsHook(**arguments)


def test_the_page_on_reading_the_plots(root):
    """Its config's hooks build, its example runs, and it explains every number that the hook writes."""
    page = (root / 'docs' / 'analysis.md').read_text()
    snippet, example = re.findall(r'```python\n(.*?)```', page, re.S)
    settings = {}
    exec(snippet, settings)
    assert [type(HOOKS.build(hook)) for hook in settings['custom_hooks']] == [BCNUpdateRateHook, NormStatisticsHook]
    exec(example, {})
    for name in ('stat_diff', 'eliminated', 'under_represented', 'distance_mean', 'distance_scale'):
        assert f'`{name}`' in page
