"""What docs/use_in_your_project.md says works."""
import re

import pytest
import torch
from conftest import ROOT, run_tool
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, init_default_scope
from torch import nn

from wsbcn_mmseg.layers import BCN, ConvWS

PAGE = (ROOT / 'docs' / 'use_in_your_project.md').read_text()
SNIPPET, ON_TOP, SCRIPT, CALL, FINE_TUNING, CALIBRATION = re.findall(r'```python\n(.*?)```', PAGE, re.S)
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
    assert 'apply_bcn_ws' not in cfg and [hook.type for hook in cfg.custom_hooks][0] == 'BCNUpdateRateHook'
    init_default_scope('mmseg')
    assert layers(MODELS.build(cfg.model)) == [23, 23]
    Config.fromstring(cfg.pretty_text, '.py')  # what the runner writes into the work folder


def test_script(my_config):
    names = {}
    exec(SCRIPT, names)
    assert layers(names['runner'].model) == [23, 22] and len(names['cfg'].custom_hooks) == 2


def test_call(capsys):
    names = {}
    exec(CALL, names)
    assert 'Converted 1 norm and 1 convolution.' in capsys.readouterr().out
    assert isinstance(names['model'][1], BCN) and names['model'][1].update_rate == 0.01
    assert type(names['model'][3]) is nn.Conv2d and torch.is_tensor(names['model'](torch.randn(1, 3, 8, 8)))


def test_calibration_in_a_script():
    names = {}
    exec(CALL + CALIBRATION, names)
    layer = names['model'][1]
    assert isinstance(layer, BCN)
    assert not torch.allclose(layer.weight, torch.ones(()))  # what preserve=True alone would give here


def test_the_settings_for_fine_tuning():
    cfg = Config.fromstring(FINE_TUNING, '.py')
    init_default_scope('mmseg')
    hooks = [HOOKS.build(hook) for hook in cfg.custom_hooks]
    assert [type(hook).__name__ for hook in hooks] == ['CalibrateHook', 'BCNUpdateRateHook', 'NormEvalHook']
    ordinary = Config.fromstring(SNIPPET, '.py').model
    ordinary.backbone.update(norm_cfg=dict(type='BN'), conv_cfg=None)
    model = MODELS.build(cfg.model | {name: part for name, part in ordinary.items() if name != 'type'})
    assert all(module.num_groups == max(1, module.num_channels // 64) for module in model.backbone.modules()
               if isinstance(module, BCN))


def test_commands_are_those_of_the_tools():
    said = ' '.join(re.findall(r'`(--[a-z-]+)', PAGE))
    help_text = run_tool('train.py', '--help').stdout
    assert all(flag in help_text for flag in [*said.split(), '--bcn-ws'])


def test_pages_it_points_to():
    for link in re.findall(r'\]\(([\w/.]+)\)', PAGE):
        assert (ROOT / 'docs' / link).is_file(), link
