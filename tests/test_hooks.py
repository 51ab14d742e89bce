"""The hooks inside MMEngine's runner: one process, resumed, accumulating, and two real ranks."""
import copy
import logging
from unittest import mock

import pytest
import torch
from conftest import run_ranks
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from small_training import Images, Model, Statistics, make_runner

from wsbcn_mmseg.hooks import BCNUpdateRateHook, SyncNormStatisticsHook
from wsbcn_mmseg.layers import BCN
from wsbcn_mmseg.runtime.checkpoint import read_checkpoint, safe_loading


def test_registered():
    assert HOOKS.get('BCNUpdateRateHook') is BCNUpdateRateHook
    assert HOOKS.get('SyncNormStatisticsHook') is SyncNormStatisticsHook


def test_rate_is_the_learning_rate_of_the_iteration(tmp_path):
    runner, recorder = make_runner(tmp_path, dict(type='BCNUpdateRateHook'))
    runner.train()
    assert [rates[0] for rates in recorder.rates] == [lr for lr, in recorder.learning_rates]
    assert recorder.rates[0] == [0.1, 0.1]
    assert recorder.rates[1][0] == pytest.approx(0.1 * 0.9**0.9)


def test_estimates_move_by_it_at_every_forward_also_under_accumulation(tmp_path):
    runner, recorder = make_runner(tmp_path, dict(type='BCNUpdateRateHook'), optim_wrapper=dict(
        optimizer=dict(type='SGD', lr=0.1), accumulative_counts=3))
    layer, conv = runner.model.backbone[1], copy.deepcopy(runner.model.backbone[0])
    mean = layer.bn.running_mean.clone()
    runner.train()
    assert layer.bn.num_batches_tracked == 6
    for image, (rate, _) in zip(Images().images[:3], recorder.rates, strict=False):  # before the first update
        mean += rate * (conv(image[None]).mean((0, 2, 3)).detach() - mean)
    assert recorder.rates[2][0] < recorder.rates[0][0]
    runner, _ = make_runner(tmp_path, dict(type='BCNUpdateRateHook'), model=_with(conv), iterations=3,
                            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=3))
    runner.train()
    torch.testing.assert_close(runner.model.backbone[1].bn.running_mean, mean)


def _with(conv):
    model = Model()
    model.backbone[0].load_state_dict(conv.state_dict())
    return model


def test_each_layer_follows_its_parameter_group_and_frozen_ones_keep_their_rate(tmp_path):
    model = Model()
    model.head[1].requires_grad_(False)
    model.head[1].update_rate = 0.33
    runner, recorder = make_runner(tmp_path, dict(type='BCNUpdateRateHook'), model=model, optim_wrapper=dict(
        optimizer=dict(type='SGD', lr=0.1), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.5)))))
    runner.train()
    assert [rates[1] for rates in recorder.rates] == [0.33] * 6
    assert recorder.rates[0][0] == 0.05
    assert recorder.rates[5][0] < 0.05


def test_several_optimizers(tmp_path):
    model = Model()
    wrappers = OptimWrapperDict(
        backbone=OptimWrapper(torch.optim.SGD(model.backbone.parameters(), 0.2)),
        head=OptimWrapper(torch.optim.SGD(model.head.parameters(), 0.4)))

    def train_step(data, optim_wrapper):
        loss = model(**data, mode='loss')['loss']
        for wrapper in optim_wrapper.values():
            wrapper.zero_grad()
        loss.backward()
        for wrapper in optim_wrapper.values():
            wrapper.step()
        return dict(loss=loss)

    model.train_step = train_step
    hook = BCNUpdateRateHook(factor=2.0, max_rate=0.7, min_rate=0.5)
    runner, recorder = make_runner(tmp_path, hook, model=model, optim_wrapper=wrappers, iterations=1)
    runner.param_schedulers = None
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    assert [layer.update_rate for layer in model.modules() if isinstance(layer, BCN)] == [0.5, 0.7]


def test_resumed_runs_go_on(tmp_path):
    runner, full = make_runner(tmp_path / 'full', dict(type='BCNUpdateRateHook'))
    start = copy.deepcopy(runner.model.state_dict())
    runner.train()
    final = runner.model.state_dict()
    model = Model()
    model.load_state_dict(start)
    runner, _ = make_runner(tmp_path / 'part', dict(type='BCNUpdateRateHook'), model=model, iterations=3)
    runner.train()
    with safe_loading():
        runner, rest = make_runner(tmp_path / 'part', dict(type='BCNUpdateRateHook'), resume=True)
        runner.train()
    assert rest.rates == full.rates[3:]
    for name, value in runner.model.state_dict().items():
        torch.testing.assert_close(value, final[name])


def test_non_finite_inputs_are_reported_by_name(tmp_path, caplog):
    runner, _ = make_runner(tmp_path, dict(type='BCNUpdateRateHook', report_interval=3), dataset=Images(broken=[1, 2]))
    with caplog.at_level(logging.WARNING, logger=runner.logger.name):
        messages = []
        runner.logger.addHandler(type('Keep', (logging.Handler, ), dict(
            emit=lambda self, record: messages.append(record.getMessage())))())
        runner.train()
    messages = [message for message in messages if 'not finite' in message]
    assert messages[0].startswith('backbone.1: the input was not finite in 2 of')
    assert runner.model.backbone[1].bn.running_mean.isfinite().all()


def test_non_finite_inputs_of_every_channel_are_reported(tmp_path):
    runner, _ = make_runner(tmp_path, dict(type='BCNUpdateRateHook', interval=1))
    runner.train()
    hook = next(hook for hook in runner.hooks if isinstance(hook, BCNUpdateRateHook))
    with mock.patch.object(runner.logger, 'warning') as warning:
        for channel, times in ((0, 5), (1, 4)):  # the second stays below the first
            runner.model.backbone[1].skipped_updates[channel] += times
            hook.after_train_iter(runner, 0)
            assert f'backbone.1: the input was not finite in {times} of' in warning.call_args.args[0]
        hook.after_train_iter(runner, 0)
    assert warning.call_count == 2


@pytest.mark.parametrize('settings', [dict(min_rate=0.5, max_rate=0.1), dict(factor=-1), dict(max_rate=2.0)])
def test_wrong_hook_settings_are_refused(settings):
    with pytest.raises(ValueError, match='expected'):
        BCNUpdateRateHook(**settings)


def _train_two_ranks(rank, folder, ema):
    """After every validation and checkpoint, all ranks and the file hold the same statistics."""
    torch.manual_seed(0)
    seen = []

    class Watch(Hook):
        priority = 'LOWEST'

        def before_val_epoch(self, runner):
            seen.append({name: value.clone() for name, value in runner.model.module.state_dict().items()})

    from pathlib import Path
    runner, _ = make_runner(
        Path(folder), dict(type='SyncNormStatisticsHook'), iterations=6, launcher='pytorch',
        val_dataloader=dict(dataset=Images(), batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler')),
        val_cfg=dict(type='ValLoop'), val_evaluator=Evaluator(Statistics()),
        cfg=dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)))
    runner.register_hook(BCNUpdateRateHook())
    if ema:
        runner.register_hook(dict(type='EMAHook', momentum=0.5), priority='NORMAL')
    runner.register_hook(Watch())
    layer = runner.model.module.backbone[1]
    runner.train()
    assert len(seen) == 2
    statistics = torch.cat([value.flatten().double() for name, value in sorted(seen[-1].items())])
    others = [torch.empty_like(statistics) for _ in range(2)]
    torch.distributed.all_gather(others, statistics)
    assert torch.equal(others[0], others[1]), 'both ranks validated the same network'
    assert (layer.bn.running_mean != 0).all()
    saved = read_checkpoint(f'{folder}/iter_6.pth')['state_dict']
    for name, value in seen[-1].items():
        assert torch.equal(saved[name], value), f'{name}: what is saved is what was validated'


@pytest.mark.parametrize('ema', [False, True])
def test_what_is_saved_is_what_was_validated(tmp_path, ema):
    run_ranks(_train_two_ranks, str(tmp_path), ema)


def _average(rank, _):
    hook = SyncNormStatisticsHook(interval=2)
    model = Model()
    for layer in (model.backbone[1].bn, model.head[1].bn, model.head[2]):
        layer.running_mean.fill_(rank), layer.running_var.fill_(3 * rank + 1)
    runner = type('R', (), dict(model=model, hooks=[]))
    from unittest import mock
    with mock.patch('torch.distributed.all_reduce', wraps=torch.distributed.all_reduce) as reduce:
        hook.before_val(runner)
        hook.before_val(runner)
    assert reduce.call_count == 1, 'one collective, and none where nothing moved since'
    for layer in (model.backbone[1].bn, model.head[1].bn, model.head[2]):
        assert layer.running_mean.eq(0.5).all()
        assert layer.running_var.eq(2.5).all()


def test_one_collective_averages_every_batch_norm():
    run_ranks(_average, None)
