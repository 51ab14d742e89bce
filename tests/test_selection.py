"""Learning rates chosen on validation images; hooks for fine-tuning; CIFAR-10 as folders of pictures."""
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import free_port, run_command
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from PIL import Image
from torch import nn

from wsbcn_mmseg import convert_model
from wsbcn_mmseg.datasets import CIFAR10Images
from wsbcn_mmseg.experiments.comparison import Training
from wsbcn_mmseg.experiments.selection import best_settings, setting_rows, setting_table
from wsbcn_mmseg.hooks import CalibrateHook, NormEvalHook
from wsbcn_mmseg.runtime.errors import UsageError


def results_of(scores: dict) -> tuple[dict, list[dict]]:
    """Trainings and results from {(method, epochs, lr): [(validation, test) of each seed, None where it failed]}."""
    groups, results = {}, []
    for (method, epochs, lr), values in scores.items():
        name = f'{method} {epochs} {lr}'
        groups[method, epochs, lr] = [Training(name, 1, seed, Path('config.py')) for seed in range(len(values))]
        results += [dict(method=name, seed=seed, score=None if value is None else value[1],
                         scores=value and dict(mIoU=value[0], test=value[1], loss=.5))
                    for seed, value in enumerate(values)]
    return groups, results


def test_the_learning_rate_is_chosen_on_validation_images_and_reported_on_test_images():
    groups, results = results_of({('A', 8, .1): [(50, 10), (40, 20)], ('A', 8, .2): [(44, 90), (60, 90)],
                                  ('B', 8, .1): [(30, 31)], ('A', 24, .2): [(60, 61), (62, 65)]})
    assert best_settings(groups, results, 'mIoU') == [('A', 8, .1), ('B', 8, .1), ('A', 24, .2)]
    rows = setting_rows(groups, results, 'mIoU', 'test')
    assert [(row['test'], row['chosen']) for row in rows] == [(15, True), (90, False), (31, True), (63, True)]
    assert rows[0]['test_std_error'] == pytest.approx(5)
    assert setting_table(rows).splitlines()[2:5] == [
        '| A | 8 | 0.1 | 2 | 45.0 ± 5.0 | **15.0 ± 5.0** | 0.50 |',
        '| A | 8 | 0.2 | 2 | 52.0 ± 8.0 | 90.0 ± 0.0 | 0.50 |',
        '| B | 8 | 0.1 | 1 | 30.0 | **31.0** | 0.50 |']


def test_failed_trainings_are_not_chosen_and_not_averaged():
    groups, results = results_of({('A', 8, .1): [None, (90, 90)], ('A', 8, .2): [(44, 44), None]})
    assert best_settings(groups, results, 'mIoU') == [('A', 8, .2)]
    assert [row['seeds'] for row in setting_rows(groups, results, 'mIoU', 'test')] == [1, 1]
    assert best_settings(*results_of({('A', 8, .1): [None]}), 'mIoU') == []


class Segmentor(BaseModel):
    """The least that the hooks need: a backbone, a head, and MMEngine's preprocessor."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.head(self.backbone(torch.stack(inputs) if isinstance(inputs, list) else inputs))


@pytest.fixture
def runner():
    model = Segmentor().train()
    for _ in range(3):
        model(torch.randn(4, 3, 16, 16) * 2)
    convert_model(model, torch.zeros(1, 3, 16, 16), preserve=True)
    dataset = [dict(inputs=torch.randn(3, 16, 16)) for _ in range(5)]
    loader = SimpleNamespace(dataset=dataset, collate_fn=lambda samples: dict(inputs=[s['inputs'] for s in samples]))
    return SimpleNamespace(model=model, train_dataloader=loader, iter=0, _load_from=None,
                           logger=logging.getLogger())


def test_the_hook_calibrates_once_before_training(runner):
    before = runner.model.backbone[1].weight.clone()
    CalibrateHook(num_images=3).before_train(runner)
    after = runner.model.backbone[1].weight.clone()
    assert not after.equal(before)
    runner.iter = 7  # resumed
    runner.train_dataloader.dataset[:] = [dict(inputs=torch.zeros(3, 16, 16))] * 5
    CalibrateHook().before_train(runner)
    assert runner.model.backbone[1].weight.equal(after)
    runner.iter, runner._load_from = 0, 'x.pth'  # as trained
    CalibrateHook().before_train(runner)
    assert runner.model.backbone[1].weight.equal(after)
    with pytest.raises(ValueError, match='at least 1, got 0'):
        CalibrateHook(num_images=0)


def test_weights_that_were_not_loaded_are_a_sentence(runner):
    runner.model = convert_model(Segmentor(), torch.zeros(1, 3, 16, 16), preserve=True)
    with pytest.raises(UsageError, match='^the network has no BCN with trained estimates; load the '):
        CalibrateHook().before_train(runner)


CALIBRATION = '''
import json, logging, torch, torch.distributed as dist, types
from torch import nn
from wsbcn_mmseg import convert_model
from wsbcn_mmseg.hooks import CalibrateHook

dist.init_process_group('gloo')
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)).train()
model(torch.rand(4, 3, 16, 16))
convert_model(model, torch.zeros(1, 3, 16, 16), preserve=True)
model.data_preprocessor = lambda batch: batch
forward, model.forward = model.forward, lambda inputs, mode: forward(inputs)
torch.manual_seed(dist.get_rank())  # as diff_rank_seed=True
images = [torch.rand(3, 16, 16) for _ in range(3)]
loader = types.SimpleNamespace(dataset=images, collate_fn=lambda images: dict(inputs=torch.stack(images)))
runner = types.SimpleNamespace(model=model, train_dataloader=loader, iter=0, _load_from=None,
                               logger=logging.getLogger())
CalibrateHook().before_train(runner)
found = [None, None]
dist.all_gather_object(found, [tensor.sum().item() for tensor in (images[0], model[1].weight, model[1].bias)])
if dist.get_rank() == 0:  # lines of two processes can run into each other
    print(json.dumps(found))
dist.destroy_process_group()
'''


def test_all_processes_calibrate_alike(tmp_path):
    script = tmp_path / 'calibration.py'
    script.write_text(CALIBRATION)
    output = run_command('torchrun', '--nproc_per_node=2', f'--master_port={free_port()}', script).stdout
    (images, *values), (other_images, *other_values) = json.loads(output)
    assert images != other_images
    assert values == other_values


def test_the_hook_fixes_the_statistics_of_the_named_parts(runner):
    hook: Hook = NormEvalHook()
    statistics = [runner.model.backbone[1].bn.running_mean, runner.model.head[1].bn.running_mean]
    before = [tensor.clone() for tensor in statistics]
    hook.before_train_iter(runner, 0)
    assert runner.model.training
    assert runner.model.backbone.training
    runner.model(torch.randn(2, 3, 16, 16))
    assert statistics[0].equal(before[0])
    assert not statistics[1].equal(before[1])


def test_cifar_10_from_folders_of_pictures(tmp_path):
    for label, name in enumerate(CIFAR10Images.METAINFO['classes']):
        folder = tmp_path / 'train' / name
        folder.mkdir(parents=True)
        Image.fromarray(np.full((32, 32, 3), 20 * label, np.uint8)).save(folder / '0001.jpg')
    dataset = CIFAR10Images('train', str(tmp_path))
    assert len(dataset) == 10
    assert dataset[3]['img'].shape == (32, 32, 3)
    assert dataset[3]['gt_label'] == 3
    assert abs(int(dataset[3]['img'].mean()) - 60) <= 1
    with pytest.raises(FileNotFoundError, match='CIFAR-10-images'):
        CIFAR10Images('test', str(tmp_path))
