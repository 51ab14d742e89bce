"""The self-check of the Triton kernels, and what happens where they fail: on CPU tensors, in Triton's interpreter.

The interpreter must be asked for before Triton is imported, so ``test_in_the_interpreter`` runs this file once more, in
a process of its own.
"""
import json
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from conftest import run_ranks
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from wsbcn_mmseg import ops
from wsbcn_mmseg.layers import BCN, UpdateRate, make_capturable
from wsbcn_mmseg.memory import save_memory
from wsbcn_mmseg.ops import agreements, batch_channel_norm, self_check
from wsbcn_mmseg.ops.batch_channel_norm import implementation_name

NO_TESTS = 5  # pytest's exit status
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
in_the_interpreter = pytest.mark.skipif(not INTERPRETED, reason='test_in_the_interpreter runs it')
needs_gpu = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason='needs a CUDA GPU')
CPU = torch.device('cpu')
KERNELS = ('moments_kernel', 'statistics_kernel', 'affine_kernel', 'dots_kernel', 'gradients_kernel', 'affine2_kernel')
MODES = {'micro_batch': dict(training=True), 'large_batch': dict(training=True, mode='large_batch'),
         'evaluation': dict(training=False)}


@pytest.mark.skipif(INTERPRETED, reason='is in the interpreter')
def test_in_the_interpreter():
    pytest.importorskip('triton', reason='needs Triton')
    result = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-rs', '-p', 'no:cacheprovider', __file__],
                            capture_output=True, text=True, env={**os.environ, 'TRITON_INTERPRET': '1'})
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    """A process that has checked nothing, with CPU tensors as a device of Triton, and a short check."""
    monkeypatch.setattr(self_check, 'DEVICE_TYPES', ('cuda', 'cpu'))
    monkeypatch.setattr(self_check, '_trusted', {})
    monkeypatch.setattr(self_check, '_warned', set())
    monkeypatch.setattr(self_check, 'CASES', self_check.CASES[:1])
    monkeypatch.setattr('wsbcn_mmseg.ops.cpp.WHY_NOT', 'for this test')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))


@pytest.fixture
def kernels():
    from wsbcn_mmseg.ops import triton_kernels
    return triton_kernels


@pytest.fixture
def trusted():
    for dtype in self_check.DTYPES:
        self_check._trusted[CPU, dtype] = True


class Around:
    """A kernel, and what is done instead of, or after, a launch."""

    def __init__(self, kernel, instead=None, after=None):
        self.kernel, self.instead, self.after = kernel, instead, after

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            if self.instead is not None:
                raise self.instead
            self.kernel[grid](*args, **kwargs)
            self.after(*args)
        return launch


def failing(kernels, monkeypatch, name: str, error: Exception) -> None:
    monkeypatch.setattr(kernels, name, Around(getattr(kernels, name), error))


def x_of(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype)


def chosen(dtype=torch.float32) -> str:
    return implementation_name('auto', torch.zeros(1, 6, 5, 5, dtype=dtype), 3, torch.zeros(6), False)


def run(impl='auto', shape=(2, 6, 5, 7), relu=False, seed=0, groups=3, **settings) -> list[torch.Tensor]:
    """Output, estimates, counts and gradients of a call."""
    generator = torch.Generator().manual_seed(seed)
    x, dy = (torch.randn(shape, generator=generator) for _ in range(2))
    batch, channel = torch.rand(4, 6, generator=generator) + .5, torch.rand(2, groups, generator=generator) - .5
    learned = [t.clone().requires_grad_() for t in (x, *batch[:2], *channel)]
    mean, var, skipped = batch[2].clone(), batch[3].clone(), torch.zeros(6, dtype=torch.int64)
    y = batch_channel_norm(*learned[:3], mean, var, *learned[3:], groups, rate=.3, impl=impl, relu=relu,
                           skipped_updates=skipped, **settings)
    return [y.detach(), mean, var, skipped, *torch.autograd.grad(y, learned, dy)]


def assert_same(got: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def only_warning(caught) -> str:
    assert len(caught) == 1, [str(one.message) for one in caught]
    return str(caught[0].message)


@in_the_interpreter
@pytest.mark.parametrize('dtype', self_check.DTYPES)
def test_the_kernels_agree(dtype, monkeypatch):
    if dtype == torch.float32:
        monkeypatch.undo()  # all cases
    assert self_check.check_kernels('cpu', dtype) is None


@in_the_interpreter
def test_agreement_selects_the_kernels(monkeypatch, capfd):
    checked = []
    check = self_check.check_kernels
    monkeypatch.setattr(self_check, 'check_kernels', lambda *args: checked.append(args) or check(*args))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        auto = run(**MODES['micro_batch'])
        run(**MODES['evaluation'])
    assert checked == [(CPU, torch.float32)]
    assert 'checking the Triton kernels' in capfd.readouterr().err
    assert all(map(torch.equal, auto, run('triton', **MODES['micro_batch'])))
    assert chosen(torch.float16) == 'triton'
    assert checked[1:] == [(CPU, torch.float16)]
    assert chosen(torch.float64) == 'fused'


def without_triton(monkeypatch):
    monkeypatch.delattr(ops, 'triton_kernels', raising=False)
    monkeypatch.delitem(sys.modules, 'wsbcn_mmseg.ops.triton_kernels', raising=False)
    monkeypatch.setitem(sys.modules, 'triton', None)


def test_a_missing_triton(monkeypatch):
    without_triton(monkeypatch)
    with pytest.warns(UserWarning, match=r'not installed \(pip install triton\).*wsbcn check --gpu') as caught:
        auto = run(**MODES['micro_batch'])
        run(**MODES['micro_batch'])
        batch_channel_norm(x_of(2, 4, 3, dtype=torch.float16), *torch.ones(4, 4), *torch.ones(2, 2), 2, training=False)
    only_warning(caught)
    assert all(map(torch.equal, auto, run('fused', **MODES['micro_batch'])))
    with pytest.raises(RuntimeError, match='needs the package triton'):
        run('triton', **MODES['micro_batch'])


@pytest.mark.parametrize('line', ["raise OSError('libcuda.so.1: cannot open shared object file')",
                                  "raise ImportError('libcuda.so.1: undefined symbol')"], ids=['os', 'import'])
def test_a_triton_that_does_not_import(line, monkeypatch, tmp_path):
    without_triton(monkeypatch)
    monkeypatch.delitem(sys.modules, 'triton')
    tmp_path.joinpath('triton.py').write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(UserWarning, match=r'Error: libcuda\.so\.1') as caught:
        run(**MODES['micro_batch'])
    only_warning(caught)


@in_the_interpreter
@pytest.mark.parametrize('error', [RuntimeError('PassManager::run failed'), ValueError('type fp8e4nv not supported'),
                                   FileNotFoundError(2, 'No such file', 'ptxas'),
                                   RuntimeError('out of resource: shared memory\nRequired: 999')], ids=str)
def test_a_compiler_that_fails(error, kernels, monkeypatch):
    failing(kernels, monkeypatch, 'gradients_kernel', error)
    with pytest.warns(UserWarning, match=type(error).__name__) as caught:
        auto = run(**MODES['micro_batch'])
        for dtype in self_check.DTYPES:
            assert chosen(dtype) == 'fused'
    message = only_warning(caught)
    assert str(error).splitlines()[-1] in message
    assert all(map(torch.equal, auto, run('fused', **MODES['micro_batch'])))
    assert not agreements.path().exists()
    with pytest.raises(type(error)):
        run('triton', **MODES['micro_batch'])


@in_the_interpreter
@pytest.mark.parametrize('name, argument, wrong', [
    ('affine_kernel', 2, 'output'), ('statistics_kernel', 2, 'running mean'),
    ('statistics_kernel', 3, 'running variance'), ('affine2_kernel', 4, 'gradient of the input'),
    ('gradients_kernel', 5, 'gradient of beta\\^c'), ('statistics_kernel', 4, 'count of skipped updates')])
def test_kernels_that_return_wrong_numbers(name, argument, wrong, kernels, monkeypatch):
    value = float('nan') if name == 'affine_kernel' else 1 if 'count' in wrong else 1e-3

    def after(*args):
        args[argument].view(-1)[0] += value

    monkeypatch.setattr(kernels, name, Around(getattr(kernels, name), after=after))
    with pytest.warns(UserWarning, match=f'{wrong} differs by') as caught:
        assert chosen() == 'fused'
    only_warning(caught)
    assert not agreements.path().exists()


@in_the_interpreter
def test_a_race(kernels, monkeypatch):
    launches = []

    def after(x, kept, y, *_):
        launches.append(y)
        y.view(-1)[0] += 1e-6 * (len(launches) % 2)

    monkeypatch.setattr(kernels, 'affine_kernel', Around(kernels.affine_kernel, after=after))
    assert 'output differs between two runs' in self_check.check_kernels('cpu', torch.float32)


SETTINGS = {**{name: dict(mode, shape=(2, 6, 5, 7), relu=True) for name, mode in MODES.items()},
            'pixels': dict(MODES['micro_batch'], shape=(3, 6, 1, 1), groups=1)}


@in_the_interpreter
@pytest.mark.parametrize('settings', SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize('name', KERNELS)
@pytest.mark.usefixtures('trusted')
def test_a_launch_that_fails_later(name, settings, kernels, monkeypatch):
    """The estimates must move once, and the gradients belong to the forward pass."""
    failing(kernels, monkeypatch, name, RuntimeError('out of resource: shared memory'))
    with pytest.warns(UserWarning, match='out of resource') as caught:
        assert_same(run(**settings), run('fused', **settings))
        assert chosen() == 'fused'
        run(**settings)
    only_warning(caught)
    assert chosen(torch.float16) == 'triton'


@in_the_interpreter
@pytest.mark.usefixtures('trusted')
def test_one_failure_is_enough(kernels, monkeypatch):
    """Layers that ran by kernels do not try again in backward, where every attempt would be one of the compiler."""
    attempts = []

    class Failing:
        def __getitem__(self, grid):
            attempts.append(grid)
            raise RuntimeError(f'out of resource: shared memory, Required: {len(attempts)}')

    monkeypatch.setattr(kernels, 'gradients_kernel', Failing())
    layers = torch.nn.Sequential(BCN(6, 3), BCN(6, 3), BCN(6, 3)).eval()
    with pytest.warns(UserWarning, match='Required: 1') as caught:
        layers(x_of(2, 6, 5, 7)).sum().backward()
    only_warning(caught)
    assert len(attempts) == 1


@in_the_interpreter
@pytest.mark.usefixtures('trusted')
def test_a_failing_launch_in_half_precision_and_channels_last(kernels, monkeypatch):
    x = (100 * x_of(2, 6, 5, 7)).half().contiguous(memory_format=torch.channels_last)
    layer = BCN(6, 3)
    results = []
    for impl in ('fused', ''):
        monkeypatch.setenv('WSBCN_IMPL', impl)
        inputs = x.clone(memory_format=torch.preserve_format).requires_grad_()
        layer.reset_parameters()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            y = layer(inputs)
            failing(kernels, monkeypatch, 'dots_kernel', RuntimeError('out of resource'))
            results.append([y.detach(), *torch.autograd.grad(y.square().sum(), [inputs, *layer.parameters()])])
    for got, expected in zip(*results, strict=True):
        assert got.dtype == expected.dtype
        assert got.stride() == expected.stride()
        torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)
    assert chosen(torch.float16) == 'fused'


@in_the_interpreter
@pytest.mark.usefixtures('trusted')
@pytest.mark.parametrize('name', ['affine_kernel', 'dots_kernel'])
def test_a_launch_that_fails_in_a_segment_of_save_memory(name, kernels, monkeypatch):
    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Conv2d(6, 6, 3), BCN(6, 3), torch.nn.ReLU())
                                      for _ in range(2)])
        save_memory(model, 'light', ['0', '1'])
        model(x_of(1, 6, 9, 9)).square().sum().backward()
        return [p.grad for p in model.parameters()]

    monkeypatch.setenv('WSBCN_IMPL', 'fused')
    expected = gradients()
    monkeypatch.setenv('WSBCN_IMPL', '')
    failing(kernels, monkeypatch, name, RuntimeError('out of resource'))
    with pytest.warns(UserWarning, match='out of resource'):
        assert_same(gradients(), expected, 1e-4)


@in_the_interpreter
@pytest.mark.parametrize('error', [torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 MiB'),
                                   RuntimeError('Triton Error [CUDA]: out of memory')], ids=['torch', 'driver'])
def test_a_full_device_says_nothing_about_the_kernels(error, kernels, monkeypatch):
    for trusted in (False, True):
        with monkeypatch.context() as patch, pytest.raises(type(error), match='out of memory'):
            failing(kernels, patch, 'affine_kernel', error)
            run(**MODES['micro_batch'])
        assert chosen() == 'triton', trusted


@pytest.mark.parametrize('text, line', [
    ("`ptxas` failed with error code 1\n`ptxas` stderr:\nptxas fatal   : Value 'sm_999' is not defined\n\nRepro "
     'command: ptxas -o a.cubin\n', "ValueError: ptxas fatal   : Value 'sm_999' is not defined"),
    ('at 3:4:\n  x = y\n      ^\ny is not defined.', 'ValueError: y is not defined'), ('', 'ValueError')])
def test_the_cause_in_one_line(text, line):
    assert self_check.cause_of(ValueError(text)) == line


@in_the_interpreter
@pytest.mark.usefixtures('trusted')
def test_what_cannot_be_recovered_raises(kernels, monkeypatch):
    failing(kernels, monkeypatch, 'affine_kernel', RuntimeError('an illegal memory access was encountered'))
    monkeypatch.setattr(self_check, 'device_works', lambda _: False)
    with pytest.raises(RuntimeError, match='illegal memory access'):
        run(**MODES['micro_batch'])
    self_check._trusted.clear()
    with pytest.raises(RuntimeError, match='illegal memory access'):
        run(**MODES['micro_batch'])


@in_the_interpreter
@pytest.mark.usefixtures('trusted')
def test_a_mistake_of_the_caller_is_not_blamed_on_the_kernels(kernels, monkeypatch):
    failing(kernels, monkeypatch, 'moments_kernel', ValueError('Pointer argument cannot be accessed from Triton'))
    x, on_another_device = x_of(2, 4, 3), torch.ones(4, device='meta')
    with pytest.raises(Exception, match='meta'):
        batch_channel_norm(x, *torch.ones(2, 4), on_another_device, on_another_device, *torch.ones(2, 2), 2,
                           training=False)
    assert chosen() == 'triton'


@in_the_interpreter
def test_agreement_is_remembered_on_disk(monkeypatch):
    assert chosen() == 'triton'
    assert [file.name for file in agreements.path().parent.iterdir()] == ['kernels.json']
    agreed = json.loads(agreements.path().read_text())['agreed']
    assert len(agreed) == 1
    assert torch.__version__ in agreed[0]

    self_check._trusted.clear()  # another process
    monkeypatch.setattr(self_check, 'check_kernels', lambda *_: 'checked again')
    assert chosen() == 'triton'
    with pytest.warns(UserWarning, match='checked again'):
        assert chosen(torch.float16) == 'fused'
    assert json.loads(agreements.path().read_text())['agreed'] == agreed


@pytest.mark.parametrize('what, other', [('_hardware', ['NVIDIA T4', '7.5', 'driver 1']), ('_triton', '9.9'),
                                         ('_digest', '0')])
def test_agreement_of_other_versions_is_not_used(what, other, monkeypatch):
    agreements.remember(agreements.key(CPU, torch.float32))
    assert agreements.holds(agreements.key(CPU, torch.float32))
    assert not agreements.holds(agreements.key(CPU, torch.float16))
    monkeypatch.setattr(agreements, what, lambda *_: other)
    assert not agreements.holds(agreements.key(CPU, torch.float32))


@pytest.mark.parametrize('content', [b'', b'\xff\x00', b'[]', b'{"agreed": 1}', b'{"agreed": {"a": 1}}',
                                     b'{"agreed": [1, null]}', b'[' * 100_000, b'__import__("os")'], ids=repr)
def test_a_damaged_file_is_replaced(content):
    agreements.path().parent.mkdir()
    agreements.path().write_bytes(content)
    assert not agreements.holds('this')
    agreements.remember('this')
    assert agreements.holds('this')


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    tmp_path.joinpath('file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    agreements.remember('this')
    assert not agreements.holds('this')


def test_without_a_home_directory(monkeypatch, tmp_path):
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
    monkeypatch.chdir(tmp_path)
    agreements.remember('this')
    assert not agreements.holds('this')
    assert not list(tmp_path.iterdir())


def test_agreement_in_the_interpreter_says_nothing_about_compiled_kernels(monkeypatch):
    monkeypatch.setattr(agreements, '_hardware', lambda _: ['NVIDIA T4'])
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    interpreted = agreements.key(CPU, torch.float32)
    monkeypatch.delenv('TRITON_INTERPRET')
    assert agreements.key(CPU, torch.float32) != interpreted


def test_the_file_does_not_grow_without_end():
    for number in range(agreements.MOST + 3):
        agreements.remember(str(number))
    assert len(json.loads(agreements.path().read_text())['agreed']) == agreements.MOST
    assert agreements.holds(str(number))


CONTEXTS = {
    'inference_mode': torch.inference_mode,
    'no_grad': torch.no_grad,
    'autocast': lambda: torch.autocast('cpu', torch.bfloat16),
    'default_device': lambda: torch.device('meta'),
    'saved_tensors': lambda: torch.autograd.graph.saved_tensors_hooks(pytest.fail, pytest.fail),
}


@in_the_interpreter
@pytest.mark.parametrize('context', CONTEXTS)
def test_the_check_is_independent_of_its_caller(context):
    before = torch.get_rng_state()
    with CONTEXTS[context]():
        assert self_check.kernels_serve(torch.empty(1, 6, 5, 5, device='cpu'), 3)
        assert torch.is_inference_mode_enabled() == (context == 'inference_mode')
        assert torch.is_grad_enabled() == (context not in ('inference_mode', 'no_grad'))
    assert torch.equal(torch.get_rng_state(), before)


@in_the_interpreter
def test_the_check_in_a_checkpointed_segment_and_with_deterministic_algorithms():
    layer, x = BCN(6, 3), x_of(2, 6, 5, 7).requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        checkpoint(layer, x, use_reentrant=False).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert self_check._trusted == {(CPU, torch.float32): True}


@in_the_interpreter
def test_the_check_needs_no_standard_error(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, 'stderr', (tmp_path / 'closed').open('w'))
    sys.stderr.close()
    assert chosen() == 'triton'


@in_the_interpreter
def test_the_check_has_the_kernels_of_many_images_and_channels(monkeypatch):
    """And those of few of either: other blocks are other kernels."""
    monkeypatch.undo()
    from wsbcn_mmseg.ops import triton_kernels
    options = [triton_kernels._combine_options(case.shape[0], case.shape[1] // case.num_groups)
               for case in self_check.CASES]
    assert {(one['BLOCK_B'], one['BLOCK_C']) for one in options} == {(1, 8), (1, 64), (4, 8), (4, 64)}


@in_the_interpreter
def test_no_check_while_a_graph_is_captured(monkeypatch):
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match='run the network once before') as caught:
        patch.setattr(self_check, 'capturing', lambda _: True)
        assert [chosen(), chosen()] == ['fused', 'fused']
    only_warning(caught)
    assert chosen() == 'triton'


@in_the_interpreter
def test_tensors_without_memory_of_their_own_take_stock_operators():
    from torch._subclasses.fake_tensor import FakeTensorMode
    with FakeTensorMode():
        assert chosen() == 'fused'
    assert not self_check._trusted


@in_the_interpreter
@pytest.mark.usefixtures('trusted')
@pytest.mark.parametrize('pre_dispatch', [False, True])
def test_make_fx_records_plain_operators(pre_dispatch):
    layer, x = BCN(6, 3).eval(), x_of(2, 6, 5, 7)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        recorded = make_fx(layer, pre_dispatch=pre_dispatch)(x_of(2, 6, 5, 7))
        torch.testing.assert_close(recorded(x), layer(x))
    assert chosen() == 'triton'


def test_a_captured_graph_can_follow_the_update_rate(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), BCN(8), BCN(8, mode='large_batch'))
    on_host = model[1]._update_rate
    assert make_capturable(model.to('meta')) is model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    assert model[1]._update_rate.device.type == 'meta'
    assert on_host is not model[1]._update_rate
    UpdateRate(model, optimizer).update()
    assert model[1].update_rate == 0.02  # without waiting for the device

    monkeypatch.setattr(self_check, 'capturing', lambda _: True)
    module = sys.modules['wsbcn_mmseg.ops.batch_channel_norm']
    on_gpu = SimpleNamespace(is_cuda=True, device=torch.device('cuda'))
    with pytest.warns(UserWarning, match='make_capturable'):
        module._warn_of_captured_rate(on_gpu, True, on_host)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        module._warn_of_captured_rate(on_gpu, True, model[1]._update_rate)
        module._warn_of_captured_rate(on_gpu, False, on_host)


def _differing_ranks(rank: int) -> None:
    """Rank 0 by the kernels, rank 1 by stock operators: statistics over both."""
    full = x_of_ranks()
    x = full[rank:rank + 1].clone().requires_grad_()
    tensors = [torch.linspace(.5, 1.5, n) for n in (6, 6, 6, 6, 3, 3)]
    gamma_b, beta_b, mean, var, gamma_c, beta_c = tensors
    learned = [t.requires_grad_() for t in (gamma_b, beta_b, gamma_c, beta_c)]
    whole = full.clone().requires_grad_()
    settings = dict(training=True, mode='large_batch', rate=.3)
    expected = batch_channel_norm(whole, gamma_b, beta_b, mean.clone(), var.clone(), gamma_c, beta_c, 3, impl='fused',
                                  **settings)
    expected_dx, = torch.autograd.grad(expected.square().sum(), whole)
    for step in range(2):  # in the second, rank 0's kernels fail after the first collective
        if rank == 0 and step:
            from wsbcn_mmseg.ops import triton_kernels
            for name in ('affine_kernel', 'affine2_kernel'):
                setattr(triton_kernels, name, Around(None, RuntimeError('out of resource')))
            self_check._trusted[CPU, torch.float32] = True
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            y = batch_channel_norm(x, gamma_b, beta_b, mean.clone(), var.clone(), gamma_c, beta_c, 3, sync=True,
                                   impl=('auto' if step else 'triton') if rank == 0 else 'fused', **settings)
            dx, *_ = torch.autograd.grad(y.square().sum(), [x, *learned])
        torch.testing.assert_close(y, expected[rank:rank + 1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(dx, expected_dx[rank:rank + 1], rtol=1e-4, atol=1e-5)


def x_of_ranks() -> torch.Tensor:
    return torch.arange(2 * 6 * 5 * 7.).mul(0.7).square().sin().view(2, 6, 5, 7)


def _agreeing_ranks(rank: int) -> None:
    from mmengine.optim import OptimWrapper

    from wsbcn_mmseg.hooks import SyncNormStatisticsHook
    model = BCN(6, 3)
    runner = SimpleNamespace(model=model, optim_wrapper=OptimWrapper(torch.optim.SGD(model.parameters(), 1)))
    self_check.check_kernels = lambda device, dtype: 'a test' if (rank, dtype) == (1, torch.float32) else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        SyncNormStatisticsHook().before_train(runner)
        assert not ops.agree_on_kernels('cpu', [torch.float32, torch.float16])
    assert self_check._trusted == {(CPU, torch.float32): False, (CPU, torch.float16): True}
    assert ('a test' if rank else 'another process') in only_warning(caught)


def _ranks(rank: int, folder: str) -> None:
    os.environ['XDG_CACHE_HOME'] = f'{folder}/{rank}'
    self_check.DEVICE_TYPES = ('cuda', 'cpu')
    _differing_ranks(rank)
    self_check._trusted.clear()
    _agreeing_ranks(rank)


@in_the_interpreter
def test_two_ranks_that_differ(tmp_path):
    run_ranks(_ranks, str(tmp_path))


@pytest.mark.usefixtures('trusted')
def test_one_process_agrees_with_itself():
    assert ops.agree_on_kernels('cpu')
    self_check._trusted[CPU, torch.float16] = False
    assert not ops.agree_on_kernels('cpu')


@pytest.mark.parametrize('impl', ['fused', 'triton'])
def test_the_environment_decides_without_a_check(impl, monkeypatch):
    monkeypatch.setenv('WSBCN_IMPL', impl)
    monkeypatch.setattr(self_check, 'check_kernels', pytest.fail)
    assert ops.agree_on_kernels('cpu') == (impl == 'triton')


@needs_gpu
@pytest.mark.parametrize('dtype', self_check.DTYPES)
def test_the_kernels_agree_on_the_gpu(dtype, monkeypatch):
    monkeypatch.undo()  # all cases
    assert self_check.check_kernels('cuda', dtype) is None


@needs_gpu
def test_a_captured_graph_follows_the_update_rate_and_a_side_stream():
    layer, x = make_capturable(BCN(64).cuda()), torch.randn(1, 64, 33, 33, device='cuda')
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        expected = layer(x)
    torch.cuda.current_stream().wait_stream(stream)
    assert chosen_on_the_gpu() == 'triton'
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        y = layer(x)
    layer.update_rate = 0.5
    before = layer.bn.running_mean.clone()
    graph.replay()
    moved = before + 0.5 * (x.mean((0, 2, 3)) - before)
    torch.testing.assert_close(layer.bn.running_mean, moved, rtol=1e-4, atol=1e-5)
    layer.update_rate = 0
    graph.replay()
    torch.testing.assert_close(layer.bn.running_mean, moved, rtol=1e-4, atol=1e-5)
    assert y.shape == expected.shape


def chosen_on_the_gpu() -> str:
    return implementation_name('auto', torch.zeros(1, 64, 5, 5, device='cuda'), 32, torch.zeros(64), False)


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_a_gpu_that_is_not_the_current_one():
    layer, x = BCN(64).to('cuda:1'), torch.randn(1, 64, 33, 33, device='cuda:1')
    y = layer(x)
    y.sum().backward()
    assert self_check._trusted[x.device, x.dtype]
    assert torch.cuda.current_device() == 0
