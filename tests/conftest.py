"""The number of threads, one seed, and helpers that several test files share."""
import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsbcn_mmseg.layers import BCN
from wsbcn_mmseg.runtime.launch import end_processes

pytest_plugins = ['faults_table', 'stack_table']
ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1 if 'PYTEST_XDIST_WORKER' in os.environ else 2)


# Of the user's own trainings
for variable in ('PRETRAINED', 'VOC_ROOT', 'WSBCN_IMPL', 'WORLD_SIZE', 'NNODES', 'NODE_RANK', 'PORT'):
    os.environ.pop(variable, None)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope='module')
def one_thread():
    """For modules with many small operations: several threads that wait for each other would take much longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='session')
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope='session')
def mini_voc(tmp_path_factory) -> Path:
    """VOC_ROOT of a prepared mini VOC."""
    from wsbcn_mmseg.datasets.mini_voc import make_mini_voc
    folder = tmp_path_factory.mktemp('mini_voc')
    make_mini_voc(folder, num_train=8, num_val=7, num_sbd=8)
    voc_root = folder / 'VOCdevkit' / 'VOC2012'
    run_tool('prepare_voc_aug.py', voc_root, '--sbd', folder / 'benchmark_RELEASE', '--expected', 16)
    return voc_root


def require(package: str) -> None:
    """Skip unless a package of OpenMMLab is installed whole, with the compiled operators that it needs."""
    try:
        for module in ['mmcv.ops'] * (package == 'mmdet') + [f'{package}.models', f'{package}.datasets']:
            importlib.import_module(module)
    except ImportError as error:
        pytest.skip(f'{package} cannot be imported here: {error}')


@pytest.fixture
def scope_of_its_own():
    """Runners set a default scope for the whole process; it is removed after the test."""
    names = set(DefaultScope._instance_dict)
    yield
    for name in set(DefaultScope._instance_dict) - names:
        DefaultScope._instance_dict.pop(name)


@pytest.fixture(scope='module')
def small_data(tmp_path_factory) -> Path:
    """The folder of a few pictures with labels."""
    from small_segmentation import write_data
    folder = tmp_path_factory.mktemp('small_data')
    write_data(folder)
    return folder


def run_tool(script: str, *arguments, check: bool = True, **environment) -> subprocess.CompletedProcess:
    """Run a file of tools/ as a user would, from another folder."""
    return run_command('bash' if script.endswith('.sh') else sys.executable, ROOT / 'tools' / script, *arguments,
                       check=check, **environment)


def run_command(*command, check: bool = True, **environment) -> subprocess.CompletedProcess:
    """Run a command with this Python first in PATH and this package in PYTHONPATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd='/tmp',
                            env={**os.environ, 'PATH': path, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1',
                                 **environment})
    assert not check or result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def _worker(rank: int, function, world_size: int, port: int, arguments: tuple):
    torch.set_num_threads(1)
    os.environ['LOCAL_RANK'] = str(rank)
    torch.distributed.init_process_group('gloo', f'tcp://127.0.0.1:{port}', rank=rank, world_size=world_size)
    try:
        function(rank, *arguments)
    finally:
        end_processes()


def run_ranks(function, *arguments, world_size: int = 2) -> None:
    """Run ``function(rank, *arguments)`` in real processes over gloo; a failure in any of them fails the test."""
    torch.multiprocessing.spawn(_worker, (function, world_size, free_port(), arguments), nprocs=world_size)


def settle(model: nn.Module, dtype=torch.float64) -> nn.Module:
    """As after training: no parameter and no estimate at its start."""
    for module in model.modules():
        if isinstance(module, (BCN, _BatchNorm)):
            for tensor in (module.weight, module.bias):
                nn.init.normal_(tensor, 0.5)
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 3)
    return model.to(dtype)
