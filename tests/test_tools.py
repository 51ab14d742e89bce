"""The commands, as users run them: two real processes, real files."""
import json
import re
import runpy
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, free_port, run_command, run_tool
from mmengine.runner import load_checkpoint
from PIL import Image

from wsbcn_mmseg.runtime.checkpoint import read_checkpoint, read_weights, safe_loading

CONFIG = ROOT / 'configs' / 'deeplabv3_r101_bcn_ws_voc.py'
MICRO = ROOT / 'configs' / 'deeplabv3_r101_bcn_ws_micro_voc.py'
SMALL = ['model.backbone.depth=18', 'model.backbone.base_channels=16', 'model.decode_head.in_channels=128',
         'model.decode_head.channels=32', 'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
         'val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False',
         'test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False']


def miou(output: str) -> list[str]:
    return re.findall(r'mIoU: ([\d.]+)', output)


@pytest.mark.parametrize('config', [CONFIG, MICRO], ids=['large_batch', 'micro_batch'])
def test_train_test_and_resume_in_two_processes(config, mini_voc, tmp_path):
    train = ['train_dataloader.batch_size=1', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2']
    result = run_tool('dist_train.sh', config, 2, '--work-dir', tmp_path, '--cfg-options', *SMALL, *train,
                      'train_cfg.max_iters=2', VOC_ROOT=str(mini_voc))
    output = result.stdout + result.stderr
    assert '2 processes on the CPU, over gloo' in output
    validated = miou(output)
    assert len(validated) == 1
    distributed = run_tool('dist_test.sh', config, tmp_path / 'iter_2.pth', 2, '--work-dir', tmp_path / 'test',
                           '--cfg-options', *SMALL, VOC_ROOT=str(mini_voc))
    single = run_tool('test.py', config, tmp_path / 'iter_2.pth', '--work-dir', tmp_path / 'test', '--out',
                      tmp_path / 'out', '--cfg-options', *SMALL, VOC_ROOT=str(mini_voc))
    assert miou(distributed.stdout + distributed.stderr) == miou(single.stdout + single.stderr) == validated
    predictions = sorted((tmp_path / 'out').glob('*.png'))
    assert len(predictions) == 7
    assert np.asarray(Image.open(predictions[0])).max() <= 20

    result = run_tool('dist_train.sh', config, 2, '--work-dir', tmp_path, '--resume', '--cfg-options', *SMALL, *train,
                      'train_cfg.max_iters=4', VOC_ROOT=str(mini_voc))
    assert 'resumed epoch: 0, iter: 2' in result.stdout + result.stderr
    assert (tmp_path / 'iter_4.pth').is_file()


@pytest.mark.skipif(sys.platform != 'linux', reason='reads the names of threads from /proc')
def test_no_thread_of_gloo_outlives_the_runner(mini_voc, tmp_path):
    """One that does may abort the interpreter's shutdown: exit code -6 after a run that went well."""
    threads = ('import pathlib, runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name="__main__"); '
               'print("threads:", *(p.read_text().strip() for p in pathlib.Path("/proc/self/task").glob("*/comm")))')
    result = run_command(sys.executable, '-c', threads, ROOT / 'tools' / 'train.py', CONFIG, '--work-dir', tmp_path,
                         '--launcher', 'pytorch', '--cfg-options', *SMALL, 'train_dataloader.batch_size=2',
                         'train_cfg.max_iters=1', VOC_ROOT=str(mini_voc), RANK='0', LOCAL_RANK='0', WORLD_SIZE='1',
                         MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()))
    assert '1 processes on the CPU, over gloo' in result.stdout + result.stderr
    assert 'gloo' not in result.stdout.split('threads:')[1]


def test_tta_and_pictures(mini_voc, tmp_path):
    run_tool('train.py', CONFIG, '--work-dir', tmp_path, '--cfg-options', *SMALL, 'train_dataloader.batch_size=2',
             'train_cfg.max_iters=1', 'train_cfg.val_interval=5', VOC_ROOT=str(mini_voc))
    options = [*SMALL, 'test_dataloader.dataset.indices=2']
    result = run_tool('test.py', CONFIG, tmp_path / 'iter_1.pth', '--tta', '--work-dir', tmp_path / 'tta',
                      '--show-dir', tmp_path / 'show', '--cfg-options', *options, VOC_ROOT=str(mini_voc))
    assert miou(result.stdout + result.stderr)
    assert list((tmp_path / 'show').rglob('*.png')) or list((tmp_path / 'tta').rglob('show/**/*.png'))


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'five_classes.pth'
    torch.save(dict(state_dict={'decode_head.conv_seg.weight': torch.zeros(5, 256, 1, 1)}), path)
    return path


@pytest.mark.parametrize('script, arguments, environment, sentence', [
    ('train.py', ['no_such_config.py'], {}, 'config no_such_config.py does not exist'),
    ('train.py', [CONFIG], dict(VOC_ROOT='/nowhere'), 'data folder /nowhere does not exist; set VOC_ROOT'),
    ('train.py', [CONFIG], dict(VOC_ROOT='/tmp'), 'tools/prepare_voc_aug.py'),
    ('train.py', [CONFIG, '--cfg-options', 'model.decode_head.num_classes=7'], {},
     'the model has 7 classes, but PascalVOCDataset has 21'),
    ('train.py', [CONFIG], dict(PRETRAINED='/nowhere.pth'), 'checkpoint /nowhere.pth does not exist'),
    ('train.py', [CONFIG, '--amp'], {}, '--amp needs a GPU'),
    ('test.py', [CONFIG, '/nowhere.pth'], {}, 'checkpoint /nowhere.pth does not exist'),
    ('test.py', [CONFIG, ROOT / 'LICENSE'], {}, 'LICENSE is not a PyTorch checkpoint'),
    ('test.py', [CONFIG, 'CHECKPOINT'], {}, 'has 5 classes, but the model has 21'),
    ('train.py', [CONFIG], dict(WORLD_SIZE='32'), 'take 16 processes'),
])
def test_mistakes_are_one_sentence(script, arguments, environment, sentence, mini_voc, checkpoint, monkeypatch):
    if '--amp' in arguments and torch.cuda.is_available():
        pytest.skip('there is a GPU here')
    for name, value in (dict(VOC_ROOT=str(mini_voc)) | environment).items():
        monkeypatch.setenv(name, value)
    arguments = [checkpoint if argument == 'CHECKPOINT' else argument for argument in arguments]
    monkeypatch.setattr(sys, 'argv', [script, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / 'tools' / script), run_name='__main__')
    assert sentence in stop.value.code
    assert '\n' not in stop.value.code


@pytest.mark.parametrize('arguments, sentence', [
    ([CONFIG, 3], '3 processes cannot share a total batch of 16 images; take 2 or 4 processes'),
    ([CONFIG], 'usage: tools/dist_train.sh CONFIG GPUS'),
])
def test_mistakes_are_one_sentence_also_before_processes_start(arguments, sentence, mini_voc):
    result = run_tool('dist_train.sh', *arguments, check=False, VOC_ROOT=str(mini_voc))
    own = [line for line in result.stderr.splitlines() if 'mmengine - INFO' not in line]
    assert result.returncode != 0
    assert len(own) == 1, result.stderr
    assert sentence in own[0]


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def traps(path):
    """What would run code when read without care; the second by means that weights-only reading allows."""
    code = f"open({str(path)!r}, 'w').close()"
    evaluate = Call(getattr, Call(getattr, getattr, '__self__'), 'eval')
    return [Call(open, str(path), 'w'),
            Call(torch._tensor._rebuild_from_type_v2, evaluate, torch.Tensor, (code, ), None)]


@pytest.mark.parametrize('kind', [0, 1])
def test_malicious_checkpoints_are_not_run(kind, tmp_path):
    trapped = tmp_path / 'trapped'
    torch.save(dict(state_dict=traps(trapped)[kind]), tmp_path / 'trap.pth')
    with pytest.raises(ValueError, match='trap.pth holds more than weights: reading it would run'):
        read_checkpoint(tmp_path / 'trap.pth')
    with safe_loading(), pytest.raises(ValueError, match='would run'):
        load_checkpoint(torch.nn.Linear(1, 1), str(tmp_path / 'trap.pth'))
    assert not trapped.exists()


@pytest.mark.parametrize('content, says', [
    (b'', 'is empty'), (b'hello', 'is not a PyTorch checkpoint'), (b'PK', 'is damaged'),
    (bytes(range(256)) * 4, 'is not a PyTorch checkpoint')], ids=['empty', 'text', 'cut', 'bytes'])
def test_files_that_are_no_checkpoints_are_one_sentence(content, says, tmp_path):
    (tmp_path / 'x.pth').write_bytes(content)
    with pytest.raises(ValueError, match=f'x.pth {says}'):
        read_weights(tmp_path / 'x.pth')
    torch.save({1: torch.zeros(1), 'state_dict': [1]}, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match='holds no weights'):
        read_weights(tmp_path / 'x.pth')


def test_logs_hold_what_the_curves_need(mini_voc, tmp_path):
    run_tool('train.py', MICRO, '--work-dir', tmp_path, '--cfg-options', *SMALL, 'train_cfg.max_iters=2',
             'train_cfg.val_interval=2', 'default_hooks.logger.interval=1', VOC_ROOT=str(mini_voc))
    lines = [json.loads(line) for line in next(tmp_path.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    assert lines[0]['lr'] == pytest.approx(0.007)
    assert 'loss' in lines[0]
    assert 'mIoU' in lines[-1]
