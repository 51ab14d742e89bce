"""A process of a training that is killed, and a node."""
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, free_port

from wsbcn_mmseg.runtime.resume import newest_whole_checkpoint

TORCHRUN = [sys.executable, '-m', 'torch.distributed.run']


def run_nodes(work_dir, nodes: int, lost: str = '') -> list[tuple[int, str]]:
    """Exit status and output of each node of a training in two processes."""
    work_dir.mkdir(exist_ok=True)
    where = [f'--nnodes={nodes}', f'--nproc_per_node={2 // nodes}', '--master_addr=127.0.0.1',
             f'--master_port={free_port()}']
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'LOST': lost}
    processes = [subprocess.Popen([*TORCHRUN, *where, f'--node_rank={rank}', ROOT / 'tests' / 'resumable_training.py',
                                   work_dir], env=environment, text=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT) for rank in range(nodes)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    return list(zip((process.returncode for process in processes), outputs, strict=True))


@pytest.fixture(scope='module')
def two_processes(tmp_path_factory):
    """The final state of a training in two processes that nothing interrupted."""
    folder = tmp_path_factory.mktemp('two_processes')
    (status, output), = run_nodes(folder, 1)
    assert status == 0, output
    return torch.load(folder / 'result.pt')


PARAMETERS = [
    pytest.param('process', 1, marks=pytest.mark.fault(
        'Lost process', 'One of two processes is killed',
        'All processes end with an error; the training resumes exactly')),
    pytest.param('node', 2, marks=pytest.mark.fault(
        'Lost process', 'One of two nodes is killed', 'The other ends with an error; the training resumes exactly'))]


@pytest.mark.parametrize(('lost', 'nodes'), PARAMETERS)
def test_a_lost_process_ends_all_and_the_training_resumes(lost, nodes, two_processes, tmp_path):
    ended = run_nodes(tmp_path, nodes, lost)
    assert all(status for status, _ in ended), ended
    if lost == 'node':
        said = re.search(r'another process of the training ended .* start all processes again, with --resume',
                         ended[0][1])
        assert said, ended[0][1]
    assert newest_whole_checkpoint(tmp_path).path.name == 'iter_5.pth'
    resumed = run_nodes(tmp_path, 1)
    assert resumed[0][0] == 0, resumed[0][1]
    result = torch.load(tmp_path / 'result.pt')
    assert not [name for name, value in two_processes.items() if not torch.equal(value, result[name])]
