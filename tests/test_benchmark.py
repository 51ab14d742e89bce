"""What the benchmark counts and writes; not what it times."""
import csv
import runpy
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from PIL import Image
from small_segmentation import CONFIG

from wsbcn_mmseg.benchmarks import (
    Options,
    accumulation,
    deployment,
    layers,
    memory,
    networks,
    watching,
    write_results,
)
from wsbcn_mmseg.benchmarks.report import file_stem
from wsbcn_mmseg.ops import cpp
from wsbcn_mmseg.plotting import COLORS

LAYERS = 7 if cpp.WHY_NOT else 10

pytestmark = pytest.mark.usefixtures('one_thread')
SHAPE = (2, 64, 9, 7)


def key(row) -> tuple:
    return row['layer'], row['implementation'], row['shape'], row['pass']


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('channels_last', [False, True])
def test_layers(dtype, channels_last):
    rows = layers.layers(Options(dtype=dtype, channels_last=channels_last, repeats=2), [SHAPE])
    assert len({key(row) for row in rows}) == len(rows) == LAYERS * 3
    assert {row['pass'] for row in rows} == {'forward', 'backward', 'both'}
    for row in rows:
        ratios = ['vs_group_norm'] if layers.WITH_RELU in row['layer'] else layers.LAYER_BASES
        assert min(row['ms'], row['copy_ms'], row['copy_bandwidth_share'], *map(row.get, ratios)) > 0
        if row['layer'] in ('GroupNorm', f'GroupNorm{layers.WITH_RELU}'):
            assert row['vs_group_norm'] == 1


@pytest.mark.parametrize('channels_last', [False, True])
def test_fused_bcn_keeps_its_input_and_little_else(channels_last):
    rows = layers.layers(Options(channels_last=channels_last, repeats=1), [SHAPE])
    kept = {(row['layer'], row['implementation']): row['saved_bytes'] for row in rows}
    activation, planes = 4 * torch.Size(SHAPE).numel(), 4 * 2 * 64
    for name in ('BCN micro-batch', 'BCN large-batch'):
        assert activation < kept[name, 'fused'] <= activation + 8 * planes
    assert kept['BCN micro-batch', 'reference'] >= 3 * activation
    assert kept['GroupNorm', 'native'] <= activation + planes


def test_one_value_per_channel_leaves_out_who_cannot():
    rows = layers.layers(Options(repeats=1), [(1, 64, 1, 1)])
    names = ('GroupNorm', 'BCN micro-batch')
    assert {row['layer'] for row in rows} == {*names, *(name + layers.WITH_RELU for name in names)}
    assert {row['vs_batch_norm'] for row in rows} == {None}


def test_networks(root, tmp_path, monkeypatch):
    chosen = [network for network in networks._networks('cpu') if network.implementation in ('native', 'reference')]
    monkeypatch.setattr(networks, '_networks', lambda device: [chosen[0], chosen[-1]])
    options = Options(repeats=1, crop=33, depths=[50], configs=root / 'configs')
    bn, plain = rows = networks.networks(options)
    assert key(bn) == ('BN', 'native', '2x3x33x33', 'training step')
    assert bn['network'] == 'DeepLabV3-R50'
    assert bn['vs_bn'] == bn['saved_vs_bn'] == 1
    assert plain['vs_bn'] > 0
    assert plain['saved_vs_bn'] > 1
    _, plot = write_results('networks', rows, options, tmp_path)
    assert Image.open(plot).format == 'PNG'


def test_memory(root, tmp_path, monkeypatch, scope_of_its_own):
    chosen = [memory.Variant('BN', 'bn', 'none'), *[memory.Variant('BCN+WS', 'bcn_ws_micro', saving)
                                                    for saving in ('none', 'strong')]]
    monkeypatch.setattr(memory, 'VARIANTS', chosen)

    def small_network(network, depth, options):
        text = CONFIG.replace('{root!r}', "''").replace('num_classes=3', 'num_classes=21')
        cfg = Config.fromstring(text, '.py').model
        cfg.backbone.norm_cfg = dict(type=network.name.split('+')[0])
        return MODELS.build(cfg)

    monkeypatch.setattr(memory, 'build_network', small_network)
    init_default_scope('mmseg')
    options = Options(repeats=1, crop=65, depths=[50], configs=root / 'configs')
    bn, plain, strong = rows = memory.memory(options)
    assert bn['vs_bn'] == bn['live_vs_bn'] == plain['vs_plain'] == 1
    assert bn['vs_plain'] is None
    assert strong['live_vs_bn'] < plain['live_vs_bn']
    assert all(row['peak_bytes'] >= row['live_bytes'] for row in rows)
    assert bn['crop_4_gb'] < strong['crop_4_gb'] < strong['crop_8_gb']
    _, plot = write_results('memory', rows, options, tmp_path)
    assert Image.open(plot).format == 'PNG'


def test_bytes_that_live_after_the_forward_pass_are_counted():
    weight = torch.ones(1000, requires_grad=True)
    live, peak = memory.activation_bytes(lambda: (weight.exp() * 2).sum(), 'cpu')
    assert 4000 <= live <= 4100  # exp keeps its result
    assert 8000 <= peak <= 13000


def test_the_crop_that_fits():
    fitting = memory.largest_crops(int(.5e9), int(.5e9), Options(crop=257))
    assert fitting['crop_4_gb'] == max(crop for crop in memory.CROPS if crop <= 257 * 5**.5)
    assert memory.largest_crops(int(1e9), int(2e9), Options(crop=257))['crop_4_gb'] == 0


def test_watching(root, tmp_path):
    options = Options(repeats=1, crop=33, batches=[2], configs=root / 'configs')
    rows = watching.watching(options)
    assert [row['implementation'] for row in rows] == ['plain', 'sampled', 'sampled, gradients']
    assert rows[0]['vs_plain'] == 1
    assert rows[0]['percent_at_interval_50'] == 0
    assert all(row['percent_at_interval_50'] == pytest.approx(2 * (row['vs_plain'] - 1)) for row in rows)
    path, plot = write_results('watching', rows, options, tmp_path)
    assert path.name == 'watching_cpu_float32.csv'
    assert Image.open(plot).format == 'PNG'


def test_accumulation(root, tmp_path, monkeypatch):
    monkeypatch.setattr(accumulation, 'MICRO_STEPS', (2, ))
    options = Options(repeats=1, crop=33, depths=[50], batches=[1], configs=root / 'configs')
    rows = accumulation.accumulation(options)
    assert [(row['layer'], row['implementation']) for row in rows] == [
        ('2 micro-steps', 'standardized in each'), ('2 micro-steps', 'standardized once')]
    assert rows[0]['vs_every'] == 1
    path, plot = write_results('accumulation', rows, options, tmp_path)
    assert path.name == 'accumulation_cpu_float32.csv'
    assert Image.open(plot).format == 'PNG'


@pytest.mark.parametrize('benchmark', ['networks', 'memory', 'watching', 'accumulation'])
def test_files_of_mixed_precision_are_named_so(benchmark):
    assert file_stem(benchmark, Options(amp=True)) == f'{benchmark}_cpu_amp_bfloat16'
    assert file_stem(benchmark, Options()) == f'{benchmark}_cpu_float32'


def test_any_number_of_layers_can_be_drawn():
    names = ['GroupNorm', *(f'layer {i}' for i in range(2 * len(COLORS)))]
    rows = [{'layer': name, 'implementation': 'native', 'shape': '2x64x9x7', 'pass': 'both', 'vs_group_norm': 1.5}
            for name in names]
    axes, = layers.draw_layers(rows).axes
    assert len(axes.patches) == len(names) - 1


def test_deployment(root, tmp_path, monkeypatch):
    monkeypatch.setattr(deployment, '_in_onnx_runtime', lambda network: network)  # test_deployment.py has the real one
    options = Options(repeats=2, crop=33, depths=[50], batches=[1], configs=root / 'configs')
    rows = deployment.deployment(options)
    names = [(row['layer'], row['implementation']) for row in rows]
    assert names[:3] == [('GN', 'native'), ('BCN+WS', 'original'), ('BCN+WS', 'folded')]
    assert rows[0]['vs_group_norm'] == rows[1]['vs_original'] == 1
    assert rows[2]['vs_group_norm'] > 0
    path, plot = write_results('deployment', rows, options, tmp_path)
    assert path.name == 'deployment_cpu_float32.csv'
    assert Image.open(plot).format == 'PNG'


@pytest.fixture
def run_tool(root, monkeypatch):
    """The command, in this process: importing OpenMMLab once more would take longer than what it measures here."""
    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['benchmark.py', *map(str, arguments)])
        runpy.run_path(str(root / 'tools' / 'benchmark.py'), run_name='__main__')
    return run


def test_tool_writes_table_csv_and_plot(run_tool, tmp_path, capsys):
    run_tool('layers', '--quick', '--repeats', 1, '--threads', 1, '--device', 'cpu', '--out', tmp_path / 'new')
    output = capsys.readouterr().out
    assert '2x2048x33x33' in output
    assert 'BCN micro-batch' in output
    path = tmp_path / 'new' / 'layers_cpu_float32_quick.csv'
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len({key(row) for row in rows}) == len(rows) == 3 * LAYERS * 3
    assert {'machine', 'threads', 'torch', 'triton', 'wsbcn_mmseg', 'date', 'device', 'memory_format'} <= set(rows[0])
    assert rows[0]['threads'] == '1'
    assert rows[0]['torch'] == torch.__version__
    assert Image.open(path.with_suffix('.png')).format == 'PNG'


def test_tool_refuses_in_one_sentence(run_tool, capsys):
    with pytest.raises(SystemExit):
        run_tool('layer')
    assert 'choose from layers, networks' in capsys.readouterr().err.splitlines()[-1]
