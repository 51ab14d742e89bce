"""The parts of the report on a GPU, the most important first, and smaller parts for a rehearsal on a CPU."""
import os
import sys
from pathlib import Path

from .parts import Part

LARGE = '(r101_shapes or more_values)'  # slow tests
ITERATIONS, REHEARSED_ITERATIONS = 200, 6
NEEDS_GPU = 'needs a GPU'
WARNINGS = 'ignore,default:BCN uses stock operators'  # ignore warnings of libraries, but not those about unused kernels


def parts_on_gpu(folder: Path, tools: Path) -> list[Part]:
    """The parts of the report on a GPU.

    Args:
        folder: Folder of the report; every part writes to ``results/NAME`` in it.
        tools: The folder ``tools``.
    """
    plan = _Plan(folder, tools, 'cuda')
    network = ('--depth', '101', '--batch')
    return [
        plan.module('agreement', 'The kernels against float64', 110, '--seconds', '80'),
        plan.benchmark('layers_batch_1', 'Layers, one image', 90, 'layers', '--batch', '1'),
        plan.benchmark('layers_graphs', 'Layers in CUDA graphs', 90, 'layers', '--batch', '1', '4', '--cuda-graphs'),
        plan.benchmark('networks', 'Training steps', 110, 'networks', *network, '2', '--repeats', '7'),
        plan.benchmark('memory', 'Memory', 80, 'memory', *network, '2', '--repeats', '5'),
        plan.benchmark('layers_batch_2_and_4', 'Layers, two and four images', 90, 'layers', '--batch', '2', '4'),
        plan.data('data', 'Synthetic data', 60, train=60, val=42, sbd=120),
        plan.training('training_float32', 'Training', 90, ITERATIONS, 10),
        plan.training('training_amp', 'Training with --amp', 90, ITERATIONS, 10, '--amp'),
        plan.benchmark('deployment', 'Inference', 60, 'deployment', *network, '1', '--repeats', '20'),
        plan.module('two_processes', 'Two processes', 130),
        plan.tests('tests', 'Tests that need a GPU', 120, 'tests/test_triton.py', 'tests/test_self_check.py',
                   'tests/test_batch_channel_norm.py::test_fused_form_on_cuda', '-k',
                   f'not interpreter and not every_target and not {LARGE}'),
        plan.benchmark('layers_bfloat16', 'Layers, bfloat16 and channels-last', 60, 'layers', '--quick', '--dtype',
                       'bfloat16', '--channels-last', '--repeats', '25'),
        plan.benchmark('networks_amp', 'Training steps, bfloat16 and channels-last', 110, 'networks', *network, '2',
                       '--repeats', '5', '--amp', '--channels-last'),
        plan.tests('tests_large', 'Tests at the shapes of ResNet-101', 180, 'tests/test_triton.py', '-k', LARGE)]


def parts_rehearsed(folder: Path, tools: Path) -> list[Part]:
    """The same parts, smaller, on the CPU; kernels run in Triton's interpreter."""
    plan = _Plan(folder, tools, 'cpu')
    small = ('--quick', '--repeats', '1', '--crop', '33', '--threads', '1')
    layers = ('layers', '--quick', '--repeats', '1', '--threads', '1')
    interpreted = {'TRITON_INTERPRET': '1'}
    return [
        plan.module('agreement', 'The kernels against float64', 120, '--few', **interpreted),
        plan.benchmark('layers_batch_1', 'Layers', 90, *layers),
        plan.benchmark('layers_graphs', 'Layers in CUDA graphs', 0)._replace(not_here=NEEDS_GPU),
        plan.benchmark('networks', 'Training steps', 90, 'networks', *small),
        plan.benchmark('memory', 'Memory', 90, 'memory', *small),
        plan.benchmark('layers_batch_2_and_4', 'Layers, two and four images', 0)._replace(
            not_here='the rehearsal measures few shapes, in the part before'),
        plan.tests('tests', 'Tests', 90, 'tests/test_triton.py', '-k', 'estimates_over or through_the_public',
                   **interpreted),
        plan.data('data', 'Synthetic data', 60, train=10, val=7, sbd=10),
        plan.training('training_float32', 'Training', 90, REHEARSED_ITERATIONS, 1),
        plan.training('training_amp', 'Training with --amp', 0, REHEARSED_ITERATIONS, 1, '--amp')._replace(
            not_here=NEEDS_GPU),
        plan.benchmark('deployment', 'Inference', 90, 'deployment', *small),
        plan.module('two_processes', 'Two processes', 90),
        plan.benchmark('layers_bfloat16', 'Layers, bfloat16 and channels-last', 90, *layers, '--dtype', 'bfloat16',
                       '--channels-last'),
        plan.benchmark('networks_amp', 'Training steps, bfloat16 and channels-last', 0)._replace(not_here=NEEDS_GPU)]


class _Plan:
    """Makes parts that write to ``folder/results/NAME``."""

    def __init__(self, folder: Path, tools: Path, device: str):
        self.folder, self.tools, self.device = folder, tools, device

    def _part(self, name: str, title: str, seconds: float, *commands: list, **environment: str) -> Part:
        path = [str(self.tools.parent), *filter(None, [os.environ.get('PYTHONPATH')])]
        environment = {'PYTHONPATH': os.pathsep.join(path), 'PYTHONUNBUFFERED': '1', 'MPLBACKEND': 'Agg',
                       'PYTHONWARNINGS': WARNINGS, 'VOC_ROOT': str(self._voc_root), **environment}
        return Part(name, title, [[sys.executable, *map(str, command)] for command in commands], seconds, environment)

    def results(self, name: str) -> Path:
        return self.folder / 'results' / name

    @property
    def _voc_root(self) -> Path:
        return self.results('data') / 'VOCdevkit' / 'VOC2012'

    def benchmark(self, name: str, title: str, seconds: float, *arguments: str) -> Part:
        return self._part(name, title, seconds, [self.tools / 'benchmark.py', *arguments, '--device', self.device,
                                                 '--out', self.results(name)])

    def module(self, name: str, title: str, seconds: float, *arguments: str, **environment: str) -> Part:
        """The command that runs a module of this package."""
        return self._part(name, title, seconds, ['-m', f'{__package__}.{name}', '--device', self.device, '--out',
                                                 self.results(name), *arguments], **environment)

    def tests(self, name: str, title: str, seconds: float, *arguments: str, **environment: str) -> Part:
        root = self.tools.parent
        part = self._part(name, title, seconds, [
            '-m', 'pytest', '-v', '-p', 'no:cacheprovider', '--rootdir', root, '-c', root / 'pyproject.toml',
            *(root / argument if argument.startswith('tests/') else argument for argument in arguments)], **environment)
        there = (root / 'tests').is_dir()
        return part if there else part._replace(not_here='the tests are in a checkout, not in an installed package')

    def data(self, name: str, title: str, seconds: float, train: int, val: int, sbd: int) -> Part:
        folder = self.results(name)
        return self._part(name, title, seconds, [
            self.tools / 'make_mini_voc.py', folder, '--train', train, '--val', val, '--sbd', sbd], [
            self.tools / 'prepare_voc_aug.py', self._voc_root, '--sbd', folder / 'benchmark_RELEASE', '--expected',
            train + sbd])

    def training(self, name: str, title: str, seconds: float, iterations: int, interval: int, *arguments: str) -> Part:
        return self._part(name, title, seconds, [
            self.tools / 'train.py', 'demo_mini_voc', '--work-dir', self.results(name), *arguments, '--cfg-options',
            f'train_cfg.max_iters={iterations}', f'train_cfg.val_interval={iterations}',
            f'default_hooks.checkpoint.interval={iterations}', f'default_hooks.logger.interval={interval}',
            f'param_scheduler.0.end={iterations + 1}'])
