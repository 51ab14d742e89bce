"""Small experiments end to end: trainings side by side, figures, plots of watched runs."""
import csv
import json
import math
import runpy
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, run_command, run_tool
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from wsbcn_mmseg.datasets.cifar_images import CIFAR10Images
from wsbcn_mmseg.experiments.comparison import (
    Comparison,
    Training,
    TrainingsFailed,
    comparison_table,
    config_digest,
    summarize,
    train_all,
)
from wsbcn_mmseg.experiments.figure_5 import FixedStatisticsNorm, four_layer_network
from wsbcn_mmseg.experiments.figures_4_and_6 import FIGURE_4, watched_training
from wsbcn_mmseg.experiments.method import methods
from wsbcn_mmseg.experiments.watched_runs import read_norm_statistics
from wsbcn_mmseg.hooks.norm_statistics_hook import FILE
from wsbcn_mmseg.runtime.launch import load_config

pytest.importorskip('mmpretrain', reason='the digits train by mmpretrain')
pytest.importorskip('sklearn', reason='the digits come with scikit-learn')


def test_digits_are_all_there_once():
    from wsbcn_mmseg.datasets import Digits
    train, test = Digits('train'), Digits('test')
    assert (len(train), len(test)) == (1347, 450)
    images = {sample['img'].tobytes() for split in (train, test) for sample in (split[i] for i in range(len(split)))}
    assert len(images) == 1797  # none twice, none in both
    assert all(sum(test[i]['gt_label'] == digit for i in range(450)) in range(43, 47) for digit in range(10))
    assert train[0]['img'].shape == (8, 8, 1)
    assert train[0]['img'].max() <= 240
    with pytest.raises(ValueError, match="'train' or 'test'"):
        Digits('val')


@pytest.mark.parametrize('batch', [1, 128])
def test_a_digits_config_learns(batch, root, tmp_path):
    """One epoch is far above chance, by the command that users run."""
    result = run_tool('train.py', root / 'configs' / 'digits' / 'resnet8_bcn_ws_digits.py', '--work-dir', tmp_path,
                      '--cfg-options', f'train_cfg.max_epochs={1 if batch == 1 else 4}',
                      f'train_dataloader.dataset.indices={400 if batch == 1 else 1347}',
                      f'train_cfg.val_interval={1 if batch == 1 else 4}', DIGITS_BATCH=str(batch))
    accuracy = float(result.stdout.split('accuracy/top1: ')[-1].split()[0])
    assert accuracy > 30
    mode = 'micro_batch' if batch == 1 else 'large_batch'
    assert f"mode='{mode}'" in next(tmp_path.glob('*/vis_data/config.py')).read_text()


QUICK = ('train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'train_dataloader.dataset.indices=128')


def comparison(root, out, *trainings, **settings) -> Comparison:
    return Comparison([*trainings], root / 'tools' / 'train.py', out, 'accuracy/top1', 'Accuracy (%)', 2, **settings)


def trainings(root) -> list[Training]:
    """Four, of two names for the same: the method does not enter."""
    config = root / 'configs' / 'digits' / 'resnet8_gn_digits.py'
    return [Training(method, 128, seed, config, QUICK) for method in ('GN', 'BN') for seed in (0, 1)]


def test_a_comparison_reports_resumes_and_takes_over_results(root, tmp_path):
    out = tmp_path / 'digits'
    table = comparison(root, out, *trainings(root)).run()
    rows = list(csv.DictReader((out / 'digits.csv').open()))
    assert [(row['method'], row['seeds']) for row in rows] == [('GN', '2'), ('BN', '2')]
    assert rows[0]['mean'] == rows[1]['mean']
    assert Image.open(out / 'digits.png').width > 300
    results = (out / 'results.jsonl').read_text()
    assert comparison(root, out, *trainings(root)).run() == table
    assert (out / 'results.jsonl').read_text() == results
    assert comparison(root, tmp_path / 'other', *trainings(root), reuse=out / 'results.jsonl').run() == table


def test_a_result_is_reused_only_for_the_same_settings_of_the_config(tmp_path, monkeypatch):
    config = tmp_path / 'config.py'

    def training(**environment):
        config_digest.cache_clear()  # as in a new process
        return Training('GN', 1, 0, config, environment=environment)

    monkeypatch.setenv('SOME_ROOT', '/here')
    text = "data_root = '{{$SOME_ROOT:}}'\npolicy = {0: lambda x: x, 'x': 2}\nlr = 0.1\nepochs = int('{{$EPOCHS:1}}')\n"
    config.write_text(text)
    row = dict(settings=json.loads(json.dumps(training().settings())))
    config.write_text(f'# a comment\n{text}')
    monkeypatch.setenv('SOME_ROOT', '/elsewhere')
    assert training().matches(row)
    assert not training(EPOCHS='2').matches(row)
    config.write_text(text.replace('0.1', '0.2'))
    assert not training().matches(row)
    del row['settings']['config_digest']  # recorded by an earlier version
    assert training().matches(row)
    assert not training(EPOCHS='2').matches(row)


def test_every_training_gets_the_environment_of_the_command(tmp_path, monkeypatch):
    """Also while the results of another are written, for which its config is read with other values of variables."""
    def load_slowly(*arguments):
        time.sleep(.3)  # long enough for a training to start
        return load_config(*arguments)

    (tmp_path / 'config.py').write_text("root = '{{$SOME_ROOT:}}'\noptim_wrapper = dict()\n"
                                        'train_dataloader = dict(batch_size=1)\n')
    train = tmp_path / 'train.py'
    train.write_text('import json, os, pathlib, sys\n'
                     "folder = pathlib.Path(sys.argv[3]) / 'run' / 'vis_data'\n"
                     'folder.mkdir(parents=True)\n'
                     "scalars = dict(ok=int(os.environ['SOME_ROOT'] == '/here'))\n"
                     "(folder / 'scalars.json').write_text(json.dumps(scalars))\n")
    monkeypatch.setenv('SOME_ROOT', '/here')
    monkeypatch.setattr('wsbcn_mmseg.experiments.comparison.load_config', load_slowly)
    config_digest.cache_clear()
    rows = train_all(Comparison([Training(f'method {i}', 1, 0, tmp_path / 'config.py') for i in range(3)], train,
                                tmp_path / 'out', 'ok', 'ok', jobs=1))
    assert [row.get('score') for row in rows] == [1, 1, 1]


@pytest.mark.parametrize('content, message', [(None, 'x.jsonl does not exist'), ('method,seed\n', 'has no results of')])
def test_a_file_to_reuse_has_results(content, message, tmp_path):
    file = tmp_path / 'x.jsonl'
    if content:
        file.write_text(content)
    result = run_tool('run_camvid.py', tmp_path, '--reuse', file, check=False)
    assert result.returncode == 2
    assert f'argument --reuse: {file} ' in result.stderr
    assert message in result.stderr


def test_a_failed_training_fails_the_comparison_with_its_reason(root, tmp_path):
    broken = Training('broken', 1, 0, root / 'configs' / 'no.py')
    out = tmp_path / 'digits'
    with pytest.raises(TrainingsFailed, match='1 of 1 .* broken, batch 1, seed 0: .*no.py does not exist'):
        comparison(root, out, broken).run()
    assert '| broken | failed |' in (out / 'digits.md').read_text()
    assert not (out / 'results.jsonl').read_text()


def test_fine_tuning_names_the_reason_if_all_trainings_fail(monkeypatch, tmp_path):
    monkeypatch.setattr('sys.argv', ['finetune_camvid.py', str(tmp_path), '--out', str(tmp_path), '--epochs', '8'])
    tool = runpy.run_path(str(ROOT / 'tools' / 'finetune_camvid.py'))
    fine_tune = tool['main']
    fine_tune.__globals__.update(
        missing_packages=lambda: None, prepare_weights=lambda out: out,
        CamVidDataset=SimpleNamespace(missing_files=lambda root: None),
        train=lambda trainings, args: [dict(method=training.method, batch=1, seed=0, score=None, reason='no memory')
                                       for training in trainings])
    monkeypatch.setenv('CAMVID_ROOT', '')  # set by the tool, and taken back at the end
    monkeypatch.setenv('WEIGHTS', '')
    with pytest.raises(SystemExit, match='trainings failed, the first is frozen BN.*: no memory'):
        fine_tune(tool['parse_args']())
    monkeypatch.setattr('sys.argv', ['finetune_camvid.py', str(tmp_path), '--epochs', '0'])
    with pytest.raises(SystemExit, match='2'):
        tool['parse_args']()


@pytest.mark.parametrize('options, environment, images', [
    ((), {}, 128), ((), dict(DIGITS_BATCH='2'), 2), (('train_dataloader.batch_size=3', ), {}, 3),
    (('optim_wrapper.accumulative_counts=2', ), dict(DIGITS_BATCH='8'), 16)])
def test_a_training_must_have_the_images_per_update_of_its_label(options, environment, images, root, tmp_path):
    config = root / 'configs' / 'digits' / 'resnet8_gn_digits.py'
    Training('GN', images, 0, config, options, environment).check_batch()
    with pytest.raises(ValueError, match=f'gn_batch4_seed0 is listed with 4 images per update, but .* has {images} '):
        comparison(root, tmp_path, Training('GN', 4, 0, config, options, environment)).run()


def test_two_trainings_may_not_share_a_folder(root, tmp_path):
    config = root / 'configs' / 'digits' / 'resnet8_gn_digits.py'
    same = [Training(method, 128, 0, config, QUICK) for method in ('GN, lr .1', 'GN, lr 1')]
    with pytest.raises(ValueError, match='2 trainings have the name gn_lr_1_batch128_seed0'):
        comparison(root, tmp_path / 'digits', *same).run()
    assert not (tmp_path / 'digits').exists()


@pytest.fixture
def cifar(tmp_path):
    """CIFAR_ROOT of 13 pictures per class, in folders."""
    image = Image.fromarray(torch.randint(256, (32, 32, 3), dtype=torch.uint8).numpy())
    for split in ('train', 'test'):
        for name in CIFAR10Images.METAINFO['classes']:
            (tmp_path / 'cifar' / split / name).mkdir(parents=True)
            for index in range(13):
                image.save(tmp_path / 'cifar' / split / name / f'{index}.jpg')
    return tmp_path / 'cifar'


@pytest.mark.parametrize('script, data, batches', [('run_mini_voc.py', 'mini_voc', ['8', '1']),
                                                   ('run_cifar.py', 'cifar', ['128', '2'])])
def test_a_quick_comparison_by_command(script, data, batches, request, tmp_path):
    run_tool(script, request.getfixturevalue(data), '--quick', '--methods', 'GN', '--out', tmp_path / 'look')
    rows = list(csv.DictReader((tmp_path / 'look' / 'look.csv').open()))
    assert [(row['method'], row['batch'], row['seeds']) for row in rows] == [('GN', batch, '1') for batch in batches]


@pytest.mark.parametrize('script', ['run_digits.py', 'run_camvid.py', 'run_mini_voc.py', 'run_cifar.py'])
def test_commands_compare_any_rows_of_the_table(script, monkeypatch, capsys):
    parse_args = runpy.run_path(str(ROOT / 'tools' / script))['parse_args']
    data = [] if 'digits' in script else ['data']
    monkeypatch.setattr('sys.argv', [script, *data, '--methods', *methods()])
    assert parse_args().methods == [*methods()]
    monkeypatch.setattr('sys.argv', [script, *data, '--methods', 'GN', 'BN', 'GN'])
    assert parse_args().methods == ['GN', 'BN']
    monkeypatch.setattr('sys.argv', [script, *data])
    assert set(parse_args().methods) <= set(methods())
    monkeypatch.setattr('sys.argv', [script, *data, '--methods', 'GM'])
    with pytest.raises(SystemExit):
        parse_args()
    assert "there is no method 'GM'; there are 'BN', 'GN', " in capsys.readouterr().err


@pytest.mark.usefixtures('one_thread')
@pytest.mark.parametrize('name', methods())
def test_every_method_trains_a_segmentor_by_single_images(name, root):
    """As tools/run_mini_voc.py and run_camvid.py set it; the head's pooling branch has one value per channel."""
    cfg = Config.fromfile(root / 'configs' / '_base_' / 'camvid_deeplabv3_r18.py')
    cfg.merge_from_dict(methods(16)[name].segmentor_settings(1))
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model)
    model(torch.randn(1, 3, 33, 33)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.dim() == 4)


def test_a_command_ends_with_the_reason_of_a_failed_training(tmp_path):
    """Without the data set's package, what trains on it fails."""
    (tmp_path / 'sklearn').mkdir()
    (tmp_path / 'sklearn' / '__init__.py').write_text('raise ImportError("hidden")')
    result = run_command(sys.executable, ROOT / 'tools' / 'run_digits.py', '--quick', '--methods', 'GN', '--out',
                         tmp_path / 'out', PYTHONPATH=f'{tmp_path}:{ROOT}', check=False)
    assert result.returncode == 1
    assert 'run_digits.py: 2 of 2 trainings failed' in result.stderr
    assert 'scikit-learn' in result.stderr


@pytest.mark.parametrize('batch', [1, 128])
@pytest.mark.parametrize('name', methods(4))
def test_every_method_trains(name, batch, root):
    """One step of ResNet-8: the row alone puts a norm into every comparison."""
    cfg = Config.fromfile(root / 'configs' / '_base_' / 'digits.py')
    cfg.merge_from_dict(methods(4)[name].settings(batch))
    init_default_scope('mmpretrain')
    backbone = MODELS.build(cfg.model.backbone)
    backbone(torch.randn(2, 1, 8, 8))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters() if parameter.dim() == 4)


def test_summary_by_hand():
    rows = [dict(method='A', batch=8, seed=seed, score=score) for seed, score in enumerate((1., 2., 6.))]
    summary, = summarize(rows)
    assert summary['mean'] == 3
    assert summary['std_error'] == pytest.approx(math.sqrt(7) / math.sqrt(3))
    assert comparison_table([summary], ['A']).splitlines()[-1] == '| A | 3.00 ± 1.53 |'


def test_fixed_statistics_are_eq_34():
    generator = torch.Generator().manual_seed(0)
    norm = FixedStatisticsNorm(6, 2., .5, generator)
    y = norm(torch.randn(16, 6, 4, 4) * 3 + 1)
    torch.testing.assert_close(y.mean((0, 2, 3)), norm.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(y.std((0, 2, 3), correction=0), norm.scale, rtol=1e-4, atol=0)
    with torch.no_grad():
        norm.weight.fill_(2), norm.bias.fill_(1)
    torch.testing.assert_close(norm(torch.randn(16, 6, 4, 4)).mean((0, 2, 3)), 2 * norm.mean + 1, rtol=0, atol=1e-5)
    at_batch_norm = four_layer_network(1, 0, 0, seed=0)
    assert all(m.mean.eq(0).all() and m.scale.eq(1).all() for m in at_batch_norm if isinstance(m, FixedStatisticsNorm))
    assert at_batch_norm(torch.randn(2, 1, 16, 16)).shape == (2, 10)


def test_gradients_are_watched_in_the_first_iteration_of_each_epoch(tmp_path, root):
    config = root / 'configs' / '_base_' / 'digits.py'
    work_dir = watched_training(config, FIGURE_4[-1], tmp_path / 'figure_4' / 'gn', 2, 8, gradients=True)
    written = read_norm_statistics(work_dir)
    assert [line['iter'] for line in written] == [1, 11]  # of ten iterations
    shares = [layer for layer in written[1]['layers'].values() if 'gradient_eq11' in layer]
    assert len(shares) == 9
    assert all(.99 < sum(layer.values()) < 1.01 for layer in shares)


@pytest.mark.parametrize('arguments, message', [
    (('6', '--data', 'cifar10'), 'set CIFAR_ROOT'), (('5', '--depth', '110'), 'are for Figures 4 and 6'),
    (('4', '--epochs', '0'), 'at least 1')])
def test_figures_that_cannot_be_made(arguments, message, monkeypatch, capsys, root):
    monkeypatch.setenv('CIFAR_ROOT', 'nowhere')
    monkeypatch.setattr('sys.argv', ['reproduce_figure.py', *arguments])
    with pytest.raises(SystemExit):
        runpy.run_path(str(root / 'tools' / 'reproduce_figure.py'), run_name='__main__')
    assert message in capsys.readouterr().err


def test_figure_5_by_command(tmp_path):
    run_tool('reproduce_figure.py', '5', '--quick', '--out', tmp_path)
    rows = list(csv.DictReader((tmp_path / 'figure_5.csv').open()))
    assert [(row['sigma_mu'], row['sigma_sigma']) for row in rows] == [('0', '0'), ('0', '3'), ('3', '0'), ('3', '3')]
    assert float(rows[0]['accuracy']) > float(rows[3]['accuracy'])  # the paper's finding, in two epochs
    assert Image.open(tmp_path / 'figure_5.png').width > 300
    assert (tmp_path / 'figure_5.svg').stat().st_size > 1000


def watched(folder, gradients: bool):
    """What a run with two layers leaves behind, in the hook's format."""
    folder.mkdir()
    shares = dict(gradient_eq12=.01, gradient_eq11=.3, gradient_left=.69) if gradients else {}
    lines = [dict(iter=10 * i, epoch=i, layers={
        name: dict(stat_diff=value / i, eliminated=.1, under_represented=.2, distance_mean=.1, distance_scale=None)
        for name, value in (('layer1.bn1', .5), ('layer2.bn1', 1.))} | ({'layer1.conv1': shares} if shares else {}),
        **({'histogram': dict(channels=[0, 3], before=dict(low=-1., high=1., counts=[[1] * 4, [2] * 4]),
                              after=dict(low=-2., high=1., counts=[[1] * 4, [2] * 4]))} if gradients else {}))
        for i in (1, 2, 3)]
    text = '\n'.join(json.dumps(line) for line in lines)
    (folder / FILE).write_text(text + '\n{"iter": 40, "lay')  # a run that was killed while writing


def test_plots_of_watched_runs(tmp_path):
    watched(tmp_path / 'a', True)
    watched(tmp_path / 'b', False)
    result = run_tool('plot_norm_statistics.py', tmp_path / 'a', tmp_path / 'b', '--out', tmp_path / 'out')
    names = {path.name for path in (tmp_path / 'out').iterdir()}
    pictures = ('stat_diff', 'a_eliminated', 'b_eliminated', 'a_gradient_shares', 'a_histograms')
    assert names == {f'{name}.{suffix}' for name in pictures for suffix in ('png', 'svg')}
    assert all(name in result.stdout for name in names)
    svg = (tmp_path / 'out' / 'stat_diff.svg').read_text()
    assert svg.count('<g id="line2d_') > 4
    result = run_tool('plot_norm_statistics.py', tmp_path, check=False)
    assert result.returncode == 1
    assert 'NormStatisticsHook' in result.stderr
    assert 'Traceback' not in result.stderr
