"""The command wsbcn, and the arguments of the tools."""
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, run_tool
from made_up_data import make_camvid
from test_package import HIDE

import wsbcn_mmseg
from wsbcn import command, installation
from wsbcn.shipped import config_names, find_config
from wsbcn_mmseg.benchmarks import BENCHMARKS
from wsbcn_mmseg.export import FORMATS, TOLERANCE
from wsbcn_mmseg.inference import INFERENCE_MODES
from wsbcn_mmseg.ops import cpp
from wsbcn_mmseg.runtime.stack import INSTALL

TOOLS = sorted(path.name for path in (ROOT / 'tools').glob('*.py'))
HELP_WITHOUT_TORCH = """
import runpy, sys
del sys.argv[0]
try:
    runpy.run_path(sys.argv[0], run_name='__main__')
except SystemExit as stop:
    assert not stop.code
print('imported:', *{'torch', 'numpy', 'mmengine', 'wsbcn_mmseg'} & set(sys.modules))
"""


@pytest.mark.parametrize('tool', TOOLS)
def test_help_is_answered_before_anything_large_is_imported(tool):
    result = subprocess.run([sys.executable, '-c', HELP_WITHOUT_TORCH, str(ROOT / 'tools' / tool), '--help'],
                            capture_output=True, text=True, env={'PYTHONPATH': str(ROOT)})
    assert result.returncode == 0, result.stderr
    help_text, _, imported = result.stdout.rpartition('imported:')
    assert help_text.startswith('usage:')
    assert not imported.strip()


def test_arguments_offer_what_the_package_has():
    """Their choices are written down once more, because the tools do not import the package for its names."""
    names = {tool: runpy.run_path(str(ROOT / 'tools' / f'{tool}.py')) for tool in ('benchmark', 'export', 'infer')}
    assert names['benchmark']['NAMES'] == tuple(BENCHMARKS)
    assert names['export']['FORMATS'] == tuple(FORMATS)
    assert names['export']['TOLERANCE'] == TOLERANCE
    assert names['infer']['MODES'] == INFERENCE_MODES


# The command

def wsbcn(*arguments: str, code: str = '') -> subprocess.CompletedProcess:
    """Run the command in a process of its own, after ``code``."""
    code += f'import wsbcn.command; wsbcn.command.main({list(arguments)!r})'
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})


@pytest.mark.parametrize('arguments', [[], ['--help'], ['help']])
def test_overview_has_a_line_for_each_command(arguments):
    result = wsbcn(*arguments)
    lines = [line.split()[0] for line in result.stdout.splitlines() if line.startswith('  ')]
    assert result.returncode == 0
    assert lines == [*command.TOOLS, 'configs']


@pytest.mark.parametrize('name', command.TOOLS)
def test_every_command_is_a_tool_that_shows_its_help(name):
    result = wsbcn(name, '--help')
    assert result.returncode == 0
    assert result.stdout.startswith(f'usage: wsbcn {name} ')


def test_version():
    assert wsbcn('--version').stdout == f'{wsbcn_mmseg.__version__}\n'


def test_unknown_commands_are_corrected():
    result = wsbcn('trains')
    assert result.returncode == 2
    assert result.stderr == 'wsbcn: there is no command trains; did you mean train?\n'


ARGUMENTS = {
    'train': ['demo_mini_voc'], 'test': ['demo_mini_voc', 'x.pth'], 'demo': [], 'benchmark': [], 'plot': ['x'],
    'infer': ['demo_mini_voc', 'x.pth', 'x.png', '--out', 'out'], 'convert': ['a', 'b'], 'mini-voc': ['x'],
    'export': ['demo_mini_voc', 'x.pth', 'x.onnx', '--format', 'onnx'], 'prepare-voc': ['x', '--sbd', 'y']}


@pytest.fixture(scope='module')
def without_openmmlab():
    """Exit status and message of every command where OpenMMLab is not installed."""
    code = HIDE.format(names=('mmcv', 'mmengine', 'mmseg')) + f"""
import contextlib, io, json, wsbcn.command
results = {{}}
for name, arguments in {ARGUMENTS}.items():
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            wsbcn.command.main([name, *arguments])
    except SystemExit as stop:
        results[name] = [stop.code, message.getvalue()]
print(json.dumps(results))
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                            env={**os.environ, 'PYTHONPATH': str(ROOT)})
    return json.loads(result.stdout)


@pytest.mark.parametrize('name', sorted(command.TOOLS.keys() - {'check'}))
def test_without_openmmlab_commands_say_so(name, without_openmmlab):
    sentence = f'wsbcn {name}: this command needs mmengine, mmcv, mmseg, not installed here; run: {INSTALL}\n'
    assert without_openmmlab[name] == [2, sentence]


@pytest.mark.parametrize('arguments, processes, others', [
    (['cfg', '--gpus', '4', '--amp'], 4, ['cfg', '--amp']),
    (['--nproc=2', 'cfg', '--cfg-options', 'a=1'], 2, ['cfg', '--cfg-options', 'a=1']),
    (['cfg', '--resume'], None, ['cfg', '--resume'])])
def test_number_of_processes(arguments, processes, others):
    assert command.number_of_processes('train', arguments) == (processes, others)
    assert command.number_of_processes('infer', arguments) == (None, arguments)


@pytest.mark.parametrize('number', ['0', '-1', 'two', '1.5'])
def test_a_wrong_number_of_processes_is_refused(number, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(['train', 'demo_mini_voc', f'--gpus={number}'])
    assert stop.value.code == 2
    assert f'{number} is not a number of processes' in capsys.readouterr().err


def test_several_processes_start_as_by_dist_train(monkeypatch):
    started = []
    monkeypatch.setattr(os, 'execvpe', lambda *call: started.append(call))
    command.main(['test', 'demo_mini_voc', 'x.pth', '--gpus', '3', '--tta'])
    (program, arguments, environment), = started
    tools = ROOT / 'tools'
    assert [program, *arguments] == ['bash', 'bash', str(tools / 'torchrun.sh'), 'test.py', '3', 'demo_mini_voc',
                                     'x.pth', '--tta']
    assert environment['PATH'].startswith(str(Path(sys.executable).parent))


# Configs by name

@pytest.mark.parametrize('name', ['deeplabv3_r101_bcn_ws_voc', 'deeplabv3_r101_bcn_ws_voc.py',
                                  'configs/deeplabv3_r101_bcn_ws_voc.py'])
def test_configs_are_found_by_name(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == ROOT / 'configs' / 'deeplabv3_r101_bcn_ws_voc.py'


@pytest.mark.parametrize('name, path', [
    ('resnet50_bcn_ws_in1k', 'imagenet/resnet50_bcn_ws_in1k.py'), ('coco/mask_rcnn_r50_gn_2x',) * 2,
    ('_base_/mini_voc', '_base_/mini_voc.py')])
def test_configs_are_found_in_folders(name, path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == (ROOT / 'configs' / path).with_suffix('.py')


def test_a_path_comes_before_a_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'demo_mini_voc').write_text('')
    assert find_config('demo_mini_voc') == Path('demo_mini_voc')


@pytest.mark.parametrize('name, close', [
    ('deeplabv3_r101_bcn_ws_vok', 'deeplabv3_r101_bcn_ws_voc'), ('demo_minivoc', 'demo_mini_voc'),
    ('configs/resnet50_bcnws_in1k', 'imagenet/resnet50_bcn_ws_in1k'), ('nothing like it', 'wsbcn configs')])
def test_other_names_are_answered_by_close_ones(name, close):
    with pytest.raises(FileNotFoundError, match='does not exist') as error:
        find_config(name)
    assert close in str(error.value)


def test_names_of_configs_are_unique():
    names = [Path(name).name for name in config_names()]
    assert len(names) == len(set(names)) > 80


def test_configs_are_listed_with_their_first_lines():
    lines = wsbcn('configs', 'digits/').stdout.splitlines()
    assert lines[0] == 'digits/resnet8_bcn_digits'
    assert len(lines) == 10
    assert all(line.startswith('    ') and line.strip() for line in lines[1::2])


# The check

IMPLEMENTATION = 'fused' if cpp.WHY_NOT else 'cpp'


def test_check_finds_agreement_here():
    line, = (line for line in installation.devices() if line.name == 'cpu')
    assert not line.broken
    assert f"BCN by '{IMPLEMENTATION}'" in line.text
    assert ' agree with float64' in line.text


@pytest.mark.parametrize('factor', [1.001, float('nan')])
def test_check_notices_a_wrong_implementation(factor, monkeypatch):
    module = sys.modules['wsbcn_mmseg.ops.batch_channel_norm']
    right = module.batch_channel_norm_fused
    monkeypatch.setattr(module, 'batch_channel_norm_fused', lambda *arguments: right(*arguments) * factor)
    monkeypatch.setenv('WSBCN_IMPL', 'fused')
    line = next(line for line in installation.devices() if line.name == 'cpu')
    assert line.broken
    assert 'DO NOT AGREE' in line.text


def test_check_reports_an_implementation_that_fails(monkeypatch):
    monkeypatch.setenv('WSBCN_IMPL', 'fussed')
    line = next(line for line in installation.devices() if line.name == 'cpu')
    assert line.broken
    assert "got 'fussed'" in line.text


@pytest.mark.parametrize('content, broken, text', [
    ('', False, 'ready'), ('raise RuntimeError("no\\nlibrary")', True, 'broken: some_package: RuntimeError: no'),
    (None, False, 'needs some_package: pip install it')])
def test_check_tells_missing_from_broken(content, broken, text, monkeypatch, tmp_path):
    if content is not None:
        (tmp_path / 'some_package.py').write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'some_package', raising=False)
    monkeypatch.setattr(installation, 'features',
                        lambda: [installation.Feature('x', ('some_package', ), 'pip install it')])
    assert list(installation.feature_lines()) == [installation.Line('x', text, broken)]


def test_check_ends_well_with_torch_alone():
    hidden = ('mmcv', 'mmengine', 'mmseg', 'mmpretrain', 'timm', 'torchvision', 'lightning', 'accelerate', 'sklearn',
              'segmentation_models_pytorch', 'onnx', 'onnxruntime', 'onnxscript', 'triton', 'rich')
    result = wsbcn('check', code=HIDE.format(names=hidden))
    assert result.returncode == 0, result.stdout + result.stderr
    features = result.stdout.partition('Features')[2]
    assert INSTALL in features
    assert 'ready' not in features
    assert 'broken' not in features


# The demo

LOG = """11/28 - mmengine - INFO -
+-------+-------+
| Class |  IoU  |
+-------+-------+
11/28 - mmengine - INFO - Iter(test) [21/21]    aAcc: 88.3  mIoU: 51.28  mAcc: 67.4  data_time: 0.01
"""


@pytest.mark.parametrize('photographs', [False, True])
def test_demo_runs_the_tools_in_order(photographs, tmp_path, monkeypatch):
    monkeypatch.setenv('CAMVID_ROOT', 'replaced')
    monkeypatch.setenv('CAMVID_EPOCHS', 'replaced')
    monkeypatch.setenv('PRETRAINED', 'of another training')
    monkeypatch.setenv('VOC_ROOT', 'replaced')
    monkeypatch.setenv('PATH', os.environ['PATH'])
    names = runpy.run_path(str(ROOT / 'tools' / 'demo.py'))
    out, calls = tmp_path / 'out', []

    def run(tool, *arguments, log=None):
        calls.append((tool, *arguments))
        if tool == 'dist_train.sh':
            out.mkdir()
            (out / 'last_checkpoint').write_text('/elsewhere/iter_700.pth\n')
        if log:
            log.write_text(LOG)

    names['main'].__globals__['run'] = run
    camvid = make_camvid(tmp_path / 'CamVid') if photographs else None
    names['main'](SimpleNamespace(camvid=camvid, data=tmp_path / 'data', out=out, gpus=2))
    assert [call[0] for call in calls] == [*['make_mini_voc.py', 'prepare_voc_aug.py'] * (not photographs),
                                           'dist_train.sh', 'dist_test.sh', 'plot_run.py']
    assert calls[-2][2] == out / 'iter_700.pth'
    assert Path(calls[-2][1]).stem == ('deeplabv3_r18_bcn_ws_camvid' if photographs else 'demo_mini_voc')
    assert not photographs or os.environ['CAMVID_ROOT'] == str(camvid)
    assert 'PRETRAINED' not in os.environ
    assert (out / 'miou.txt').read_text().splitlines()[-1] == 'aAcc: 88.3  mIoU: 51.28  mAcc: 67.4'


def test_demo_says_which_photographs_are_missing(tmp_path):
    result = run_tool('demo.py', '--camvid', tmp_path / 'nowhere', check=False)
    assert result.returncode == 1
    assert re.fullmatch(r'demo.py: .*train.txt does not exist; set CAMVID_ROOT to .*\n', result.stderr)


@pytest.mark.parametrize('source', ['--camvid', '--data'])
def test_demo_does_not_delete_its_images(source, tmp_path):
    result = run_tool('demo.py', source, tmp_path / 'images', '--out', tmp_path, check=False)
    assert result.returncode == 2
    assert 'must not contain the images' in result.stderr


def test_demo_ends_with_the_status_of_a_tool_that_fails(tmp_path):
    names = runpy.run_path(str(ROOT / 'tools' / 'demo.py'))
    with pytest.raises(SystemExit) as stop:
        names['run']('plot_run.py', '--no-such-argument', log=tmp_path / 'log')
    assert stop.value.code == 2
    assert 'usage: plot_run.py' in (tmp_path / 'log').read_text()
