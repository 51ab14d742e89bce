"""README and docs: code runs, tables are the measurements, files and links exist, the site builds."""
import ast
import csv
import importlib
import json
import re
import subprocess
import sys

import pytest
import test_comparators
import torch
from conftest import ROOT, run_tool
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, init_default_scope
from torch import nn

from wsbcn_mmseg.experiments.method import Method
from wsbcn_mmseg.layers import BCN, ConvWS
from wsbcn_mmseg.ops.batch_channel_norm import IMPLEMENTATIONS

PAGE = (ROOT / 'docs' / 'use_in_your_project.md').read_text()
SNIPPET, ON_TOP, SCRIPT, CALL, FINE_TUNING, CALIBRATION, FUSE_RELU = re.findall(r'```python\n(.*?)```', PAGE, re.S)
ORDINARY = SNIPPET.replace("custom_imports = dict(imports=['wsbcn_mmseg'])\n", '').replace("'BCN'", "'BN'").replace(
    "dict(type='ConvWS')", 'None').replace(SNIPPET[SNIPPET.index('custom_hooks'):], 'custom_hooks = []\n')


@pytest.fixture
def my_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'my_config.py').write_text(f"{ORDINARY}default_scope = 'mmseg'\nwork_dir = 'work'\n")
    return tmp_path


def layers(model):
    return [sum(isinstance(m, kind) for m in model.modules()) for kind in (BCN, ConvWS)]


def test_snippet(tmp_path):
    (tmp_path / 'config.py').write_text(SNIPPET)
    init_default_scope('mmseg')
    assert layers(MODELS.build(Config.fromfile(tmp_path / 'config.py').model)) == [23, 23]


def test_config_on_top(my_config):
    (my_config / 'converted.py').write_text(ON_TOP)
    cfg = Config.fromfile(my_config / 'converted.py')
    assert 'apply_bcn_ws' not in cfg
    assert [hook.type for hook in cfg.custom_hooks][0] == 'BCNUpdateRateHook'
    init_default_scope('mmseg')
    assert layers(MODELS.build(cfg.model)) == [23, 23]
    Config.fromstring(cfg.pretty_text, '.py')  # what the runner writes into the work folder


def test_script(my_config):
    names = {}
    exec(SCRIPT, names)
    assert layers(names['runner'].model) == [23, 22]
    assert len(names['cfg'].custom_hooks) == 2


def test_call(capsys):
    names = {}
    exec(CALL, names)
    assert 'Converted 1 norm and 1 convolution.' in capsys.readouterr().out
    assert isinstance(names['model'][1], BCN)
    assert names['model'][1].update_rate == 0.01
    assert type(names['model'][3]) is nn.Conv2d
    assert torch.is_tensor(names['model'](torch.randn(1, 3, 8, 8)))


def test_calibration_in_a_script():
    names = {}
    exec(CALL + CALIBRATION, names)
    layer = names['model'][1]
    assert isinstance(layer, BCN)
    assert not torch.allclose(layer.weight, torch.ones(()))  # what preserve=True alone would give here


def test_fused_relu_in_a_script():
    names = {}
    exec(CALL + CALIBRATION + FUSE_RELU, names)
    assert names['names'] == ['1']


def test_the_settings_for_fine_tuning():
    cfg = Config.fromstring(FINE_TUNING, '.py')
    init_default_scope('mmseg')
    hooks = [HOOKS.build(hook) for hook in cfg.custom_hooks]
    assert [type(hook).__name__ for hook in hooks] == ['CalibrateHook', 'BCNUpdateRateHook', 'NormEvalHook']
    ordinary = Config.fromstring(SNIPPET, '.py').model
    ordinary.backbone.update(norm_cfg=dict(type='BN'), conv_cfg=None)
    model = MODELS.build(cfg.model | {name: part for name, part in ordinary.items() if name != 'type'})
    assert all(module.num_groups == 1 for module in model.backbone.modules()
               if isinstance(module, BCN))


def test_commands_are_those_of_the_tools():
    said = ' '.join(re.findall(r'`(--[a-z-]+)', PAGE))
    help_text = run_tool('train.py', '--help').stdout
    assert all(flag in help_text for flag in [*said.split(), '--bcn-ws'])


PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md')), *sorted((ROOT / 'configs').rglob('*.md'))]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_links_exist(page):
    text = page.read_text()
    named = re.findall(r'(?<![\w/.])((?:tools|configs|docs|tests|examples)/[\w/.-]+\.(?:py|sh|md|png))', text)
    linked = re.findall(r'\]\((?!https?:)([^)#]+)', text)
    assert not [name for name in named if not (ROOT / name).is_file()]
    assert not [link for link in linked if not (page.parent / link).exists()]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_anchors_exist(page):
    for link, anchor in re.findall(r'\]\((?!https?:)([^)#]*)#([^)]+)\)', page.read_text()):
        target = (page.parent / link if link else page).read_text()
        headings = [re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-')
                    for heading in re.findall(r'^#+ (.*)$', target, re.M)]
        assert anchor in headings


# The site

DOCS = ROOT / 'docs'


@pytest.mark.parametrize('page', sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob('*.md')))
def test_page_is_in_the_navigation(page):
    assert f': {page}\n' in (ROOT / 'mkdocs.yml').read_text()


def code_of(name: str) -> str:
    return '\n'.join(re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / name).read_text(), re.S))


@pytest.mark.parametrize('page', ['start_pytorch.md', 'micro_batch.md', 'pretrained_weights.md', 'memory.md', 'gpu.md'])
def test_code_of_pages_runs(page):
    exec(code_of(page), {})


def test_the_config_of_the_start_page_is_that_of_readme():
    cfg = Config.fromstring(code_of('start_openmmlab.md'), '.py')
    assert [hook.type for hook in cfg.custom_hooks] == ['BCNUpdateRateHook', 'SyncNormStatisticsHook']
    assert (cfg.norm_cfg.type, cfg.conv_cfg.type) == ('BCN', 'ConvWS')


def test_estimates_are_averaged_as_the_page_says(monkeypatch):
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda: 2)
    monkeypatch.setattr(torch.distributed, 'all_reduce', lambda tensor: tensor.add_(1))  # the other process has 1
    names = {}
    exec(code_of('several_nodes.md'), names)
    layer = BCN(4, num_groups=1)
    names['average_estimates'](layer)
    torch.testing.assert_close(layer.bn.running_mean, torch.full((4, ), 0.5))
    torch.testing.assert_close(layer.bn.running_var, torch.ones(4))


NOTEBOOK = ROOT / 'docs' / 'notebook.ipynb'


def test_notebook_runs(monkeypatch, one_thread):
    monkeypatch.setenv('MPLBACKEND', 'Agg')
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setattr(sys, 'path', sys.path[:])
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())['cells'] if cell['cell_type'] == 'code']
    assert any('image/png' in output.get('data', {}) for cell in cells for output in cell['outputs'])
    names = {}
    for cell in cells:
        exec(''.join(cell['source']), names)
    assert names['agree']
    assert names['iou'](names['model']) > 0.8


@pytest.mark.parametrize('page, modules', [
    ('layers', ['wsbcn_mmseg.layers']), ('operators', ['wsbcn_mmseg.ops']),
    ('conversion', ['wsbcn_mmseg.conversion']), ('openmmlab', ['wsbcn_mmseg.hooks']),
    ('memory', ['wsbcn_mmseg.memory'])])
def test_reference_is_complete(page, modules):
    text = (ROOT / 'docs' / 'reference' / f'{page}.md').read_text()
    described = set(re.findall(r'^::: [\w.]+\.(\w+)$', text, re.M))
    assert set().union(*(importlib.import_module(module).__all__ for module in modules)) <= described


def test_site_builds(tmp_path):
    for module in ('mkdocs', 'material', 'mkdocstrings', 'latex2mathml'):
        pytest.importorskip(module, reason='needs requirements/docs.txt')
    result = subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(tmp_path / 'site')],
                            cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    theory = (tmp_path / 'site' / 'theory.html').read_text()
    assert '<math' in theory
    assert 'arithmatex' not in theory
    reference = (tmp_path / 'site' / 'reference' / 'operators.html').read_text()
    assert '<math' in reference
    assert not re.search(r'<p>[^<]*(:(class|func|meth):|\.\. math)', reference)
    loaded = re.findall(r'<(?:script|img)[^>]* src="(https?:[^"]+)|<link rel="stylesheet" href="(https?:[^"]+)', theory)
    assert not loaded


# README

@pytest.fixture
def readme(root):
    return (root / 'README.md').read_text()


@pytest.fixture
def snippets(readme):
    """Plain PyTorch, OpenMMLab."""
    return re.findall(r'```python\n(.*?)```', readme, re.S)


def test_readme_converts_and_trains_a_plain_network(snippets, capsys):
    names = {}
    exec(snippets[0], names)
    conv, norm, _, logits = names['model']
    assert type(conv) is ConvWS
    assert type(norm) is BCN
    assert type(logits) is torch.nn.Conv2d
    assert norm.update_rate == names['optimizer'].param_groups[0]['lr']
    assert not torch.equal(norm.bn.running_mean, torch.zeros(64))
    assert 'Converted 1 norm and 1 convolution.' in capsys.readouterr().out


def test_readme_config_works(snippets, tmp_path):
    (tmp_path / 'config.py').write_text(snippets[1])
    cfg = Config.fromfile(tmp_path / 'config.py')
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model)
    norms = [m for m in model.modules() if isinstance(m, BCN)]
    assert len(norms) == 55
    assert sum(isinstance(m, ConvWS) for m in model.modules()) == 55
    assert [hook['type'] for hook in cfg.custom_hooks] == ['BCNUpdateRateHook', 'SyncNormStatisticsHook']


def test_readme_names_every_folder_of_the_package(root, readme):
    layout = readme[readme.index('## Layout'):]
    parts = [path for path in (root / 'wsbcn_mmseg').iterdir() if not path.name.startswith('_')]
    missing = [path.name for path in parts if path.is_dir() and f'{path.name}/`' not in layout]
    assert not missing


@pytest.mark.parametrize('table', ['camvid', 'digits'])
def test_readme_tables_are_the_measurements(root, readme, table):
    names = {'BCN+WS, large-batch mode': 'BCN+WS'}
    with (root / 'docs' / 'results' / f'{table}.csv').open() as file:
        measured = {(row['method'], row['batch']): f'{float(row["mean"]):.2f} ± {float(row["std_error"]):.2f}'
                    for row in csv.DictReader(file)}
    if table == 'camvid':  # with one image, BCN+WS follows Algorithm 1
        measured['BCN+WS, Algorithm 1', '1'] = measured.pop(('BCN+WS', '1'))
    start = readme.index({'camvid': '**CamVid from scratch', 'digits': '**Digits'}[table])
    section = readme[start:readme.index('\n**', start)]
    batches = re.findall(r'(\d+) images? per update', section[section.index('| |'):])[:2]
    shown = {(names.get(name, name), batch): cell.replace('*', '').strip()
             for name, *cells in re.findall(r'^\| (\S[^|]*?) \| (.*?) \| (.*?) ?\|$', section, re.M)
             for batch, cell in zip(batches, cells, strict=True) if cell.strip()}
    assert shown == measured


def test_table_11_has_a_config_per_row(root, readme):
    rows = re.findall(r'^\| `(\w+)` \|', readme, re.M)
    configs = {path.name for path in (root / 'configs').glob('deeplabv3_r101_*_voc.py')}
    extras = {'pretrain', *(path.stem for path in (root / 'requirements').iterdir())}  # another table's rows
    assert configs == {f'deeplabv3_r101_{row}_voc.py' for row in rows if row not in extras}


# Extending

def test_the_norm_and_the_test_of_the_page_fit():
    layer, row, test = re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'add_a_norm.md').read_text(), re.S)
    names = vars(test_comparators) | dict(Method=Method)
    exec(layer, names)
    assert names['MyNorm']._abbr_ == 'mynorm'
    assert eval(row, names)[0].norm_cfg == dict(type='MyNorm')
    exec(test, names)
    names['test_my_norm_is_its_paper_s']()


def test_the_comparison_of_the_page_is_one(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = {}
    exec(re.search(r'```python\n(.*?)```', (ROOT / 'docs' / 'add_a_comparison.md').read_text(), re.S)[1], names)
    comparison = names['comparison']
    assert len({training.name for training in comparison.trainings}) == 6
    assert comparison.train.is_file()
    assert all(training.config.is_file() for training in comparison.trainings)


def test_the_kernel_page_names_what_exists():
    names = re.findall(r'^\| `(\w+)` \|', (ROOT / 'docs' / 'add_a_kernel.md').read_text(), re.M)
    assert tuple(names) == IMPLEMENTATIONS


def test_the_table_of_faults_has_all_that_is_tested(root):
    """``python -m pytest -m fault --faults-table=docs/faults.md`` makes it."""
    page = (root / 'docs' / 'faults.md').read_text()
    calls = [node for path in (root / 'tests').glob('test_*.py') for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.Call) and getattr(node.func, 'attr', getattr(node.func, 'id', '')) == 'fault']
    rows = [' | '.join(argument.value for argument in call.args) for call in calls]
    assert len(rows) > 30
    assert [row for row in rows if f'| {row} |' not in page] == []
    counts = re.findall(r'\| (\d+) \| (\d+) \|$', page, re.M)
    assert len(counts) == len(rows)
    assert all(tests == passed for tests, passed in counts)
