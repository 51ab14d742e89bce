"""Faults that no check before the start finds: the last line names them, and checkpoints stay whole."""
import random

import pytest
import torch
from conftest import run_tool
from mmengine.config import Config
from small_segmentation import run, write_config, write_data

from wsbcn_mmseg.runtime.checkpoint import read_checkpoint
from wsbcn_mmseg.runtime.naming_dataset import NamingDataset, SampleError
from wsbcn_mmseg.runtime.start import BEFORE_A_RUN

pytestmark = pytest.mark.usefixtures('one_thread')
IMAGES = 30
TRANSFORM = """
import os
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS
from torch.utils.data import get_worker_info

@TRANSFORMS.register_module()
class Dying(BaseTransform):
    def transform(self, results):
        if {name!r} in results['img_path'] and get_worker_info() is not None:
            os.kill(os.getpid(), 9)
        return results
"""


def missed() -> str:
    """The picture of a sample that the check before a run does not load, and that is among the first to train."""
    chosen = random.Random(0).sample(range(IMAGES - 2), BEFORE_A_RUN.samples)
    return f'picture{next(index for index in range(2, IMAGES) if index not in chosen) + 2}'


def settings(workers: int) -> str:
    return (f"train_dataloader.update(num_workers={workers}, persistent_workers={workers > 0})\n"
            "train_dataloader['sampler'] = dict(type='InfiniteSampler', shuffle=False)\n"
            "train_cfg.update(max_iters=20, val_interval=20)\n")


@pytest.mark.fault('Damaged file', 'An image or label that cannot be read, in the middle of a training',
                   'The training ends with its name; checkpoints are whole')
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('folder', ['images', 'labels'])
def test_a_damaged_file_is_named(folder, workers, tmp_path):
    write_data(tmp_path / 'data', images=IMAGES)
    path = tmp_path / 'data' / folder / f'{missed()}.png'
    path.write_bytes(path.read_bytes()[:40])
    code, printed = run('train.py', write_config(tmp_path / 'config.py', tmp_path / 'data', settings(workers)),
                        '--work-dir', tmp_path / 'run')
    assert code.startswith('train.py: ')
    assert f'{path}' in code
    assert 'cannot be loaded: ' in code
    assert '\n' not in code
    assert 'Traceback' not in printed
    saved = sorted((tmp_path / 'run').glob('iter_*.pth'))
    assert saved
    for checkpoint in saved:
        read_checkpoint(checkpoint)


@pytest.mark.fault('Damaged file', 'An image that cannot be read, in a validation',
                   'The training ends with its name; checkpoints are whole')
def test_a_damaged_file_of_evaluation_data_is_named(tmp_path):
    write_data(tmp_path / 'data', images=IMAGES)
    data = tmp_path / 'data'
    (data / 'val.txt').write_text((data / 'train.txt').read_text())
    config = write_config(tmp_path / 'config.py', data, settings(0) + "train_cfg.update(max_iters=1, val_interval=1)\n"
                          "train_dataloader['dataset'] = dict(dataset, indices=2)")
    path = data / 'labels' / f'{missed()}.png'
    path.write_bytes(path.read_bytes()[:40])
    code, _ = run('train.py', config, '--work-dir', tmp_path / 'run')
    assert f'{path} cannot be loaded' in code
    code, _ = run('test.py', config, tmp_path / 'run' / 'iter_1.pth', '--work-dir', tmp_path / 'test')
    assert f'{path} cannot be loaded' in code


@pytest.mark.fault('Lost process', 'A data loading worker is killed',
                   'The training ends with an error message')
def test_a_worker_that_is_killed_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write_data(tmp_path / 'data', images=IMAGES)
    (tmp_path / 'dying.py').write_text(TRANSFORM.format(name=f'{missed()}.png'))
    more = settings(2) + "custom_imports['imports'].append('dying')\ntrain_pipeline.append(dict(type='Dying'))\n"
    more = more.replace('train_pipeline.append(', 'train_pipeline.insert(0, ')
    config = write_config(tmp_path / 'config.py', tmp_path / 'data', more)
    code, printed = run('train.py', config, '--work-dir', tmp_path / 'run')
    assert code.startswith('train.py: a process that loads data died')
    assert code.endswith('and continue with --resume')
    assert 'Traceback' not in printed


def test_a_killed_worker_is_known_wherever_its_signal_arrives(tmp_path, monkeypatch):
    """torch raises the death from a signal handler: here while MMEngine writes the config, which wraps any error."""
    def interrupted(*args, **kwargs):
        raise RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. ')

    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', interrupted)
    write_data(tmp_path / 'data')
    with pytest.raises(SyntaxError):
        Config({'a': 1}).pretty_text  # noqa: B018
    code, printed = run('train.py', write_config(tmp_path / 'config.py', tmp_path / 'data'),
                        '--work-dir', tmp_path / 'run')
    assert code.startswith('train.py: a process that loads data died (Killed)')
    assert 'Traceback' not in printed


@pytest.mark.fault('Damaged file', 'The same in one of two processes',
                   'Both end; the last line names the file')
def test_a_damaged_file_is_named_in_the_last_line_of_two_processes(tmp_path):
    write_data(tmp_path / 'data', images=IMAGES)
    path = tmp_path / 'data' / 'labels' / f'{missed()}.png'
    path.write_bytes(path.read_bytes()[:40])
    result = run_tool('dist_train.sh', write_config(tmp_path / 'config.py', tmp_path / 'data', settings(1)), 2,
                      '--work-dir', tmp_path / 'run', check=False)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('train.py: ')
    assert f'{path} cannot be loaded' in last


def test_the_sentence_survives_its_way_from_a_worker():
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            raise KeyError(f'no {index}\nat all')

    loader = torch.utils.data.DataLoader(NamingDataset(Broken()), num_workers=1)
    with pytest.raises(SampleError) as error:
        list(loader)
    assert str(error.value) == 'sample 0 cannot be loaded: no 0'
