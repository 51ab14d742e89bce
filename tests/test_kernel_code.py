"""The Triton kernels compiled for GPUs that are not there, and the bytes that they move, counted in the interpreter."""
import csv
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from wsbcn_mmseg.benchmarks import kernels, traffic, write_results
from wsbcn_mmseg.benchmarks.layers import LAYER_SHAPES
from wsbcn_mmseg.benchmarks.measuring import Options
from wsbcn_mmseg.runtime.errors import UsageError
from wsbcn_mmseg.runtime.records import markdown_table

BENCHMARKS = ROOT / 'docs' / 'benchmarks'
PAGE = (BENCHMARKS / 'gpu_kernels.md').read_text()


@pytest.fixture
def kernel_code():
    pytest.importorskip('triton', reason='needs Triton')
    from wsbcn_mmseg.benchmarks import kernel_code
    if reason := kernel_code.why_not():
        pytest.skip(reason)
    return kernel_code


@pytest.mark.parametrize('target', ['sm_80', 'gfx942'])
def test_no_kernel_spills_and_activations_are_read_in_vectors(kernel_code, target):
    call, *_ = kernels.layer_calls((256, 65), torch.float32, torch.contiguous_format)
    codes = {code.kernel: code for code in kernel_code.compiled(target, call)}
    assert set(codes) == {'moments', 'statistics', 'affine', 'dots', 'gradients', 'affine2'}
    assert {code.spills for code in codes.values()} == {0}
    assert all(20 < code.registers <= 168 for code in codes.values())  # 168: three programs of 128 threads fit
    tensors = {'moments': 1, 'affine': 1, 'dots': 2, 'affine2': 2}  # activations that each reads
    loads = {name: codes[name].loads_128 / number for name, number in tensors.items()}
    assert set(loads.values()) == {2048 / kernel_code_threads(target) / 4}
    assert codes['affine'].stores_128 == codes['affine2'].stores_128 == loads['affine']


def kernel_code_threads(target: str) -> int:
    """Of a program: four warps."""
    return 4 * (64 if target.startswith('gfx') else 32)


def test_numbers_are_read_from_what_the_disassemblers_print(kernel_code):
    cuda = ''' Function k: REG:46 STACK:8 SHARED:0 LOCAL:0
    /*01*/ LDG.E.128 R4, [R2.64] ; /*02*/ @!P0 LDG.E R4, [R2.64] ; /*03*/ STG.E.128 [R2.64], R4 ; STL [R1], R5 ;'''
    assert kernel_code.read_cuda(cuda, 16) == (46, 1, 16, 2, 1, 1, 1)
    rocm = '''    global_load_dwordx4 v[2:5], v1, s[0:1]
    buffer_load_dword v2, v1
    buffer_store_dwordx2 v[2:3], v1
    .sgpr_spill_count: 1\n .vgpr_count:     31\n .vgpr_spill_count: 2'''
    assert kernel_code.read_rocm(rocm, 0) == (31, 3, 0, 2, 1, 1, 0)


def test_without_triton_one_sentence(monkeypatch):
    monkeypatch.setattr(kernels.importlib.util, 'find_spec', lambda name: None)
    for benchmark in (kernels.kernels, traffic.traffic):
        with pytest.raises(UsageError, match='pip install triton'):
            benchmark(Options())


def test_bytes_are_counted_without_masked_ones(one_thread):
    pytest.importorskip('triton', reason='needs Triton')
    code = '''
import json, torch, triton, triton.language as tl
from wsbcn_mmseg.benchmarks.traffic_count import counting, count_layer
@triton.jit
def double(x, y, n):
    i = tl.arange(0, 16)
    tl.store(y + i, 2 * tl.load(x + i, i < n), i < n - 1)
with counting() as count:
    double[(1, )](torch.ones(16, dtype=torch.float16), torch.zeros(16), 5)
print(json.dumps([dict(count), count_layer((1, 4, 33, 33), torch.contiguous_format)]))'''
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True,
                            env={**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': str(ROOT)})
    assert result.returncode == 0, result.stderr
    small, layer = json.loads(result.stdout)
    assert small == {'read': 10, 'written': 16}
    for key, limit in traffic.LIMIT.items():
        assert limit < layer[key] < limit + 0.06, key


def test_estimates_are_bytes_over_bandwidth():
    times = traffic.estimates(1e6, traffic.LIMIT)
    assert times['t4_ms'] == pytest.approx(1e3 * 32e6 / 0.32e12)
    assert times['t4_cached_ms'] == times['t4_ms']  # 4 MB do not fit into half of its cache
    assert times['h100_cached_ms'] == pytest.approx(1e3 * (32e6 - 3 * 4e6) / 3.35e12)


def test_norms_of_a_step(root):
    numbers = traffic.norms_of_a_step(Options(crop=33, configs=root / 'configs'))
    assert sum(numbers.values()) == 110
    sides = {17: 257, 9: 129, 5: 65, 3: 33, 1: 1}  # at crop 513
    assert {(channels, sides[side]) for channels, side in numbers} == set(LAYER_SHAPES)


def test_files_are_named_without_a_machine(tmp_path, monkeypatch):
    row = {'kernel': 'moments', 'target': 'sm_80', 'registers': 46, 'spills': 0, 'shared_bytes': 16, 'loads_128': 4,
           'stores_128': 0}
    path, plot = write_results('kernels', [row], Options(quick=True), tmp_path)
    assert (path.name, plot.name) == ('kernels_quick.csv', 'kernels_quick.png')
    with path.open() as file:
        written, = csv.DictReader(file)
    assert {'triton', 'date'} <= set(written)
    assert not {'machine', 'device', 'threads'} & set(written)


# The page

def rows_of(name: str) -> list[dict]:
    with (BENCHMARKS / f'{name}.csv').open() as file:
        return list(csv.DictReader(file))


def test_tables_of_the_page_are_those_of_the_commands():
    assert markdown_table(kernels.summary(rows_of('kernels')), kernels.KERNEL_COLUMNS) in PAGE
    assert markdown_table(rows_of('traffic'), traffic.TRAFFIC_COLUMNS) in PAGE


def test_what_the_page_says_of_the_tables():
    code = rows_of('kernels')
    assert len(code) == 6 * 3 * 2 * 6
    assert {row['spills'] for row in code} == {'0'}
    scalar = {(row['kernel'], row['target'][:3], row['dtype'], row['memory_format']) for row in code
              if row['kernel'] not in ('statistics', 'gradients') and row['loads_128'] == '0'}
    assert scalar == {(kernel, 'gfx', dtype, 'contiguous') for kernel in ('affine', 'affine2')
                      for dtype in ('float16', 'bfloat16')}
    above = {row['memory_format']: float(row['above_limit']) for row in rows_of('traffic')
             if (row['shape'], row['layer']) == (traffic.ALL, 'BCN')}
    shown = [float(number) / 100 for number in re.findall(r'within (\d\.\d) %', PAGE)]
    assert shown == pytest.approx([above['contiguous'], above['channels_last']], abs=5e-4)
