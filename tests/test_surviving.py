"""Trainings that are killed, folders that are moved, files that are damaged or hostile."""
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import run_tool
from mmengine.hooks import Hook
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from resumable_training import make, train
from test_tools import CONFIG, SMALL

from wsbcn_mmseg.runtime.checkpoint import read_checkpoint, safe_loading
from wsbcn_mmseg.runtime.errors import UsageError
from wsbcn_mmseg.runtime.resume import newest_whole_checkpoint
from wsbcn_mmseg.runtime.whole_files import WholeFileBackend, whole_files

fault = pytest.mark.fault
KILLS = int(os.environ.get('WSBCN_TEST_KILLS', 100))


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """Final weights, momentum and averages of a training that nothing interrupted, its folder, and its seconds."""
    folder = tmp_path_factory.mktemp('undisturbed')
    start = time.perf_counter()
    state = train(folder)
    return state, folder, time.perf_counter() - start


def same(state: dict, other: dict) -> bool:
    return state.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in state.items())


@pytest.fixture
def work_dir(undisturbed, tmp_path):
    """A copy of the undisturbed training's folder."""
    shutil.copytree(undisturbed[1], tmp_path / 'run')
    return tmp_path / 'run'


def train_to_the_end(work_dir: str, result: str) -> None:
    torch.save(train(Path(work_dir)), result)


def kill_and_resume(kills: int, seed: int, folder: Path, undisturbed: tuple) -> None:
    """Kill a training at random moments of its run, resume it, start it again when it is finished."""
    state, _, seconds = undisturbed
    context = multiprocessing.get_context('forkserver')  # whose processes need not import anything
    context.set_forkserver_preload(['resumable_training'])
    chance, result = random.Random(seed), folder.with_suffix('.pth')
    while kills:
        process = context.Process(target=train_to_the_end, args=(str(folder), str(result)))
        process.start()
        process.join(chance.uniform(0, seconds))
        killed = process.is_alive()
        if killed:
            process.kill()
            kills -= 1
        process.join()
        if process.exitcode == 0:
            assert same(state, torch.load(result))
            assert not list(folder.glob('.*.part'))
            shutil.rmtree(folder)
        else:
            assert killed  # the exit code is -9, or 255 if the fork server did not learn it
    assert same(state, train(folder))


@fault('Kill', 'The process is killed 100 times at random moments, also while it writes',
       'Every training resumes and ends with the weights of an uninterrupted one, bit for bit')
def test_a_hundred_kills_at_random_moments(undisturbed, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda seed: kill_and_resume(KILLS // 2, seed, tmp_path / str(seed), undisturbed), range(2)))


@fault('Kill', 'Random augmentation, dropout; another number of data loading workers after the interruption',
       'Same weights, bit for bit')
@pytest.mark.parametrize(('stop', 'before', 'after'), [(5, 0, 2), (4, 1, 0)])
def test_any_number_of_workers_resumes_to_the_same_weights(stop, before, after, undisturbed, tmp_path):
    train(tmp_path, stop=stop, workers=before)
    assert same(undisturbed[0], train(tmp_path, workers=after))


@fault('Kill', 'No seed was given',
       'The training resumes with the random seed, which is in the checkpoint')
def test_a_seed_that_was_drawn_goes_on(tmp_path):
    train(tmp_path / 'part', seed=None, stop=4)
    seed = newest_whole_checkpoint(tmp_path / 'part').seed
    whole = train(tmp_path / 'whole', seed=seed)
    assert same(whole, train(tmp_path / 'part', seed=seed))


@fault('Kill', 'The work folder was moved',
       'The training resumes in the new folder; nothing is written to the old one')
def test_a_folder_that_was_moved_resumes_in_its_new_place(undisturbed, tmp_path):
    train(tmp_path / 'old', stop=6)
    best = next((tmp_path / 'old').glob('best_*')).name
    (tmp_path / 'old').rename(tmp_path / 'new')
    assert same(undisturbed[0], train(tmp_path / 'new'))
    assert not (tmp_path / 'old').exists()
    expected = {path.name for path in undisturbed[1].glob('*.pth')}
    assert {path.name for path in (tmp_path / 'new').glob('*.pth')} == expected, f'{best} was superseded'


def test_checkpoints_between_accumulated_gradients_are_warned_of(tmp_path):
    runner = make(tmp_path, stop=2)
    runner.optim_wrapper['accumulative_counts'] = 2
    with safe_loading(), whole_files():
        runner.train()
    log, = tmp_path.glob('*/*.log')
    assert 'Checkpoints every 1 iterations lose gradients that are accumulated over 2 iterations' in log.read_text()


def damage(path: Path) -> None:
    """Flip one byte in the middle of the largest record."""
    with zipfile.ZipFile(path) as file:
        largest = max(file.infolist(), key=lambda record: record.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + largest.file_size // 2] ^= 1
    path.write_bytes(content)


@fault('Kill', '`last_checkpoint` is cut short, names another folder, or is missing',
       'The newest whole checkpoint is used, and named in the log')
@pytest.mark.parametrize('pointer', ['', 'iter_1', '/elsewhere/run/iter_99.pth', None])
def test_a_bad_pointer_is_named_and_passed_over(pointer, work_dir):
    if pointer is None:
        (work_dir / 'last_checkpoint').unlink()
    else:
        (work_dir / 'last_checkpoint').write_text(pointer)
    point = newest_whole_checkpoint(work_dir)
    assert point.path == work_dir / 'iter_10.pth'
    assert 'iter_10.pth is the newest whole checkpoint' in point.remarks[0]


@fault('Damaged file', 'The newest checkpoint is cut, empty or has a flipped bit',
       'The previous one is used, and named in the log; without a whole checkpoint, an error')
@pytest.mark.parametrize('harm', [damage, lambda path: path.write_bytes(path.read_bytes()[:5000]),
                                  lambda path: path.write_bytes(b'')], ids=['flipped', 'cut', 'empty'])
def test_damaged_checkpoints_are_passed_over(harm, work_dir):
    harm(work_dir / 'iter_10.pth')
    point = newest_whole_checkpoint(work_dir)
    assert point.path == work_dir / 'iter_9.pth'
    assert 'iter_10.pth' in point.remarks[0]
    harm(work_dir / 'iter_9.pth')
    with pytest.raises(UsageError, match='no checkpoint that can be used') as error:
        newest_whole_checkpoint(work_dir)
    assert all(f'{name}.pth is' in str(error.value) for name in ('iter_9', 'iter_10'))


def test_the_newest_is_the_one_saved_last(work_dir):
    """Not the one with the largest number, which may be of an earlier, longer training; copies change file times."""
    (work_dir / 'iter_10.pth').rename(work_dir / 'iter_8000.pth')
    os.utime(work_dir / 'iter_9.pth', (2e9, 2e9))
    old = torch.load(work_dir / 'iter_8000.pth', weights_only=False)
    old['meta']['time'] = '20200101_000000'
    torch.save(old, work_dir / 'iter_8000.pth')
    assert newest_whole_checkpoint(work_dir).path.name == 'iter_9.pth'


@fault('Damaged file', '1 or 2,000 bytes of a checkpoint flip',
       'An error, or the weights are not affected')
@pytest.mark.parametrize('seed', range(4))
def test_flipped_bytes_are_noticed(seed, work_dir):
    path, chance = work_dir / 'iter_10.pth', random.Random(seed)
    whole = read_checkpoint(path)['state_dict']
    content = bytearray(path.read_bytes())
    for _ in range(2000 if seed == 0 else 1):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    try:
        read = read_checkpoint(path)['state_dict']
    except ValueError as error:
        assert 'damaged' in str(error)
    else:  # a byte between the records
        assert seed
        assert same(whole, read)


class FullDisk(Hook):
    """From an iteration on, no file may be larger than a kilobyte."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@fault('Full disk', 'A checkpoint cannot be written',
       'The training ends with an error, the previous checkpoint is whole, and the training resumes exactly')
def test_a_full_disk_leaves_the_last_checkpoint_whole(undisturbed, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    runner = make(tmp_path)
    runner.register_hook(FullDisk())
    runner._hooks[-1].priority = 'NORMAL'
    try:
        with safe_loading(), whole_files(), pytest.raises(UsageError, match='iter_7.pth could not be written'):
            runner.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in tmp_path.glob('iter_*')) == ['iter_5.pth', 'iter_6.pth']
    assert not list(tmp_path.glob('.*.part'))
    assert same(undisturbed[0], train(tmp_path))


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'folder' / 'file'
    WholeFileBackend().put_text('first', path)
    WholeFileBackend().put(b'second', str(path))
    with pytest.raises(TypeError):
        WholeFileBackend().put(None, path)
    assert path.read_bytes() == b'second'
    with pytest.raises(UsageError, match='could not be written: File exists'):
        WholeFileBackend().put(b'', path / 'below')


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.fixture
def hostile(tmp_path):
    """A checkpoint that writes a file when it is read without care, and that file."""
    torch.save(dict(state_dict=Call(os.mkdir, str(tmp_path / 'ran'))), tmp_path / 'hostile.pth')
    yield tmp_path / 'hostile.pth'
    assert not (tmp_path / 'ran').exists()


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The address of a server of the test's folder; downloads go to another folder."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    handler = type('Quiet', (SimpleHTTPRequestHandler, ), dict(log_message=lambda *_: None))
    server = ThreadingHTTPServer(('127.0.0.1', 0), lambda *arguments: handler(*arguments, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


@fault('Hostile file', 'A checkpoint that executes code, by path, URL, torchvision://, modelzoo://, openmmlab:// and mmcls://',
       'Nothing is executed; the error names the function that the file would have called')
def test_no_scheme_runs_what_a_checkpoint_holds(hostile, served, monkeypatch):
    names = 'mmengine.runner.checkpoint.'
    for function in ('get_torchvision_models', 'get_external_models', 'get_mmcls_models'):
        monkeypatch.setattr(names + function, lambda: dict(net=f'{served}/hostile.pth'))
    monkeypatch.setattr(names + 'get_deprecated_model_names', lambda: {})
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')  # a usual remedy for what MMEngine's loader refuses
    before = dict(CheckpointLoader._schemes)
    for path in (str(hostile), f'{served}/hostile.pth', 'torchvision://net', 'modelzoo://net', 'openmmlab://net',
                 'open-mmlab://net', 'mmcls://net'):
        with safe_loading(), pytest.raises(UsageError, match='would run (posix|os).mkdir; it was not read'):
            load_checkpoint(torch.nn.Linear(1, 1), path)
        with pytest.raises(UsageError, match='would run (posix|os).mkdir'):
            read_checkpoint(path)
    with safe_loading(), pytest.raises(pickle.UnpicklingError):
        torch.load(hostile, weights_only=False)  # as a hook could
    assert dict(CheckpointLoader._schemes) == before
    assert os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] == '1'
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


def test_urls_are_downloaded_once_and_told_apart(served, tmp_path):
    for folder, value in (('a', 1.), ('b', 2.)):
        (tmp_path / folder).mkdir()
        torch.save(dict(state_dict=dict(weight=torch.tensor(value))), tmp_path / folder / 'net.pth')
    for _ in range(2):  # the second time from the cache
        read = [float(read_checkpoint(f'{served}/{folder}/net.pth')['state_dict']['weight']) for folder in 'ab']
        assert read == [1, 2]
        shutil.rmtree(tmp_path / 'a', ignore_errors=True)
    with pytest.raises(UsageError, match='net2.pth cannot be downloaded: HTTP Error 404'):
        read_checkpoint(f'{served}/a/net2.pth')


@fault('Hostile file', 'A checkpoint whose metadata holds a config, which MMEngine itself would execute',
       'It is not executed')
def test_a_config_in_a_checkpoint_is_not_run_when_it_is_resumed(undisturbed, work_dir):
    """MMEngine's runner executes ``meta['config']``, which MMCV 1 wrote."""
    checkpoint = torch.load(work_dir / 'iter_9.pth', weights_only=False)
    checkpoint['meta']['config'] = f'import os\nos.mkdir({str(work_dir / "ran")!r})'
    torch.save(checkpoint, work_dir / 'iter_9.pth')
    (work_dir / 'iter_10.pth').unlink()
    assert same(undisturbed[0], train(work_dir))
    assert not (work_dir / 'ran').exists()


@fault('Damaged file', 'An empty file, an HTML page, text, a cut file or another pickle as checkpoint',
       'The error names the kind of file')
@pytest.mark.parametrize(('content', 'reason'), [
    (b'', 'is empty'),
    (b'<!DOCTYPE html><html>Not found</html>', 'is an HTML page; did a download fail'),
    (b'hello', 'is not a PyTorch checkpoint'),
    (b'PK\x03\x04 and no more', 'is damaged'),
    (pickle.dumps([1, 2]), 'holds a list|cannot be read'),
    (pickle.dumps(Call(os.mkdir, 'ran'), 4), 'would run posix.mkdir'),
    (pickle.dumps(Call(os.mkdir, 'ran'), 2), 'would run posix.mkdir'),
])
def test_each_file_is_called_what_it_is(content, reason, tmp_path):
    (tmp_path / 'x.pth').write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        read_checkpoint(tmp_path / 'x.pth')
    with pytest.raises(UsageError, match='cannot be read: Is a directory'):
        read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match='checkpoint .*y.pth does not exist'):
        read_checkpoint(tmp_path / 'y.pth')


def test_files_without_checksums_are_read(tmp_path):
    if not hasattr(torch.serialization, 'set_crc32_options'):
        pytest.skip('this PyTorch always writes checksums')
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(dict(a=torch.ones(3)), tmp_path / 'x.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_checkpoint(tmp_path / 'x.pth')['a'], torch.ones(3))
    torch.save(dict(a=torch.ones(3)), tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(tmp_path / 'old.pth')['a'], torch.ones(3))


@fault('Kill', '`--resume` in an empty folder; with `load_from` in the config; with pretrained weights that are gone',
       'An error; resumes from the work folder; resumes from the work folder')
def test_resume_means_the_work_folder(mini_voc, hostile, tmp_path):
    """Even if the config loads other weights, which are gone by now, and the work folder is elsewhere."""
    train_a_little = ['--cfg-options', *SMALL, 'train_dataloader.batch_size=2', 'default_hooks.checkpoint.interval=1',
                      'train_cfg.val_interval=2']
    first, moved = tmp_path / 'first', tmp_path / 'moved'
    result = run_tool('train.py', CONFIG, '--work-dir', first, '--resume', *train_a_little, VOC_ROOT=str(mini_voc),
                      check=False)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1] == (
        f'train.py: {first} has no checkpoint to resume from; set --work-dir, or leave out --resume to train from the '
        'start')
    assert not first.exists()
    result = run_tool('train.py', CONFIG, '--work-dir', first, '--auto-resume', *train_a_little,
                      'train_cfg.max_iters=2', VOC_ROOT=str(mini_voc))
    assert 'no checkpoint yet: training from the start' in result.stdout
    first.rename(moved)
    damage(moved / 'iter_2.pth')
    result = run_tool('train.py', CONFIG, '--work-dir', moved, '--resume', *train_a_little, 'train_cfg.max_iters=2',
                      f'load_from={hostile}', 'model.backbone.init_cfg.type=PretrainedBackbone',
                      'model.backbone.init_cfg.checkpoint=gone.pth', VOC_ROOT=str(mini_voc))
    output = result.stdout + result.stderr
    assert 'iter_2.pth is damaged' in output
    assert f'resuming from {moved / "iter_1.pth"}' in output
    assert 'resumed epoch: 0, iter: 1' in output
    read_checkpoint(moved / 'iter_2.pth')


@fault('Hostile file', 'A hostile checkpoint in `init_cfg` of any module',
       'Nothing is executed')
def test_weights_of_every_part_are_read_with_care(mini_voc, hostile, tmp_path):
    (tmp_path / 'config.py').write_text(
        f'_base_ = {str(CONFIG)!r}\n'
        'model = dict(decode_head=dict(init_cfg=dict(_delete_=True, type="Pretrained", '
        f'checkpoint={str(hostile)!r})))\n')
    result = run_tool('train.py', tmp_path / 'config.py', '--work-dir', tmp_path / 'run', '--cfg-options', *SMALL,
                      'train_dataloader.batch_size=2', VOC_ROOT=str(mini_voc), check=False)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].endswith('would run posix.mkdir; it was not read')
