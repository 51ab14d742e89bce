"""Installing and importing."""
import importlib.metadata
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import wsbcn_mmseg
from wsbcn_mmseg.ops import cpp
from wsbcn_mmseg.runtime import stack

HIDE = """
import importlib.util, sys
hidden, find = {names}, importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name.split('.')[0] in hidden else find(name, *a)
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in hidden:
            raise ModuleNotFoundError(f'No module named {{name!r}}')
sys.meta_path.insert(0, Hidden())
"""
OPENMMLAB = ('mmcv', 'mmengine', 'mmseg', 'mmpretrain', 'cv2', 'matplotlib', 'rich', 'torchvision')


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)


def test_torch_alone_gives_layers_conversion_and_folding():
    result = run_python(HIDE.format(names=OPENMMLAB) + """
import time, torch
from torch import nn
start = time.perf_counter()
import wsbcn_mmseg
from wsbcn_mmseg import BCN, ConvWS, convert_model, fold, plan_conversion
from wsbcn_mmseg.layers import ConvWS1d, AdaptiveConvWS, SwitchableNorm
from wsbcn_mmseg.ops import batch_channel_norm, standardize_weight
from wsbcn_mmseg.conversion.calibrate import calibrate
model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 4, 1))
x = torch.randn(2, 3, 9, 9)
assert plan_conversion(model).norms and type(convert_model(model, norm=dict(type='BCN'))[1]) is BCN
model(x).sum().backward()
torch.testing.assert_close(fold(model.eval())(x), model(x), rtol=1e-4, atol=1e-4)
assert not {'mmengine', 'mmcv', 'mmseg', 'matplotlib', 'cv2'} & set(sys.modules)
for name in ('apply_bcn_ws', 'infer', 'load_segmentor', 'hooks', 'datasets', 'models'):
    try:
        getattr(wsbcn_mmseg, name)
    except ImportError as error:
        print(error)
try:
    wsbcn_mmseg.nothing
except AttributeError as error:
    print(error)
""")
    assert result.returncode == 0, result.stderr
    *needed, unknown = result.stdout.strip().splitlines()
    assert len(needed) == 6
    assert unknown == "module 'wsbcn_mmseg' has no attribute 'nothing'"
    assert needed[0] == ('wsbcn_mmseg.apply_bcn_ws needs mmengine, mmcv, mmseg, not installed here; '
                         f'run: {stack.INSTALL}')


@pytest.mark.parametrize('missing', ['mmcv', 'mmseg'])
def test_openmmlab_in_part_is_said_in_a_sentence(missing):
    result = run_python(HIDE.format(names=(missing, )) + 'import wsbcn_mmseg; wsbcn_mmseg.BCN(8)')
    assert result.returncode == 0
    assert f'registers nothing: it needs {missing}, not installed here; run: {stack.INSTALL}' in result.stderr


def test_the_advised_command_is_the_requirements_file(root):
    lines = (root / 'requirements' / 'onedl.txt').read_text().splitlines()
    assert stack.INSTALL == 'pip install ' + ' '.join(line for line in lines if not line.startswith('#'))


def test_two_distributions_over_each_other_are_named(monkeypatch):
    real = importlib.metadata.version
    both = ('mmcv', 'onedl-mmcv')
    monkeypatch.setattr(stack, 'version', lambda name: '1' if name in both else real(name))
    with pytest.raises(ImportError, match="mmcv and onedl-mmcv are both installed and overwrite each other's files.*"
                                          'pip uninstall -y mmcv onedl-mmcv'):
        stack.check_stack()


@pytest.mark.parametrize('loads', [True, False])
def test_torchvision_of_another_build_can_be_imported(loads, tmp_path):
    """Its compiled part does not load; mmseg and mmpretrain need none of it. Where it loads, nothing is declared."""
    package = tmp_path / 'torchvision'
    package.mkdir()
    (package / '__init__.py').write_text(
        'import torch\nif not hasattr(torch.ops.torchvision, "nms"):\n    raise RuntimeError("nms does not exist")\n')
    (package / f'_C{EXTENSION_SUFFIXES[0]}').write_bytes(b'not a library')
    code = (f'import sys, torch\nsys.path.insert(0, {str(tmp_path)!r})\n'
            f'torch.ops.load_library = (lambda path: None) if {loads} else torch.ops.load_library\n'
            f'import runpy\nstack = runpy.run_path({stack.__file__!r})\n'
            'stack["declare_torchvision_operators"]()\n'
            'print(hasattr(torch.ops.torchvision, "nms"))\nif not hasattr(torch.ops.torchvision, "nms"): sys.exit()\n'
            'import torchvision')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(not loads)


def test_importing_changes_nothing_but_registries():
    code = ('import random, torch, warnings, runpy\n'
            f'stack = runpy.run_path({stack.__file__!r})\n'
            'stack["declare_torchvision_operators"]()\n'  # mmseg alone would stop here
            'import mmseg.models, mmseg.datasets\n'
            'state = lambda: (torch.get_default_dtype(), torch.backends.cudnn.benchmark, torch.initial_seed(),'
            ' warnings.filters[:], random.getstate(), torch.get_num_threads())\n'
            'before = state()\nimport wsbcn_mmseg\nassert state() == before')
    subprocess.run([sys.executable, '-c', code], check=True, capture_output=True)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    from conftest import ROOT
    folder = tmp_path_factory.mktemp('wheel')
    command = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    files = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split('\0')
    source = folder / 'source'
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', str(folder),
                    str(source)], check=True, capture_output=True,
                   env={**os.environ, 'CC': '/nowhere', 'CXX': '/nowhere'})  # the C++ kernels are optional
    return next(folder.glob('*.whl'))


def test_wheel_carries_configs_and_tools(wheel, root):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ('configs', 'tools'):
        for path in (root / folder).rglob('*.py'):
            assert f'wsbcn_mmseg/.mim/{path.relative_to(root)}' in names
    assert {'wsbcn/py.typed', 'wsbcn_mmseg/py.typed'} <= names
    assert {f'wsbcn_mmseg/ops/csrc/{name}' for name in ('batch_channel_norm.cpp', 'passes.h')} <= names
    assert not any('_cpp_torch_' in name for name in names)
    assert 'wsbcn_mmseg/.mim/tools/dist_train.sh' in names
    assert not any(name.startswith('tests') for name in names)


PAGE = Path(__file__).resolve().parent.parent / 'docs' / 'use_in_your_project.md'
BUILD = """
import wsbcn_mmseg  # before the config is read
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
import sys
for name in sys.argv[1:]:
    cfg = Config.fromfile(name)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    print(type(model).__name__, 'with', sum(isinstance(layer, wsbcn_mmseg.BCN) for layer in model.modules()), 'BCN')
"""


def test_installed_package_imports_from_any_folder_and_trains_by_its_own_tools(wheel, tmp_path):
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', str(tmp_path / 'site'),
                    str(wheel)], check=True, capture_output=True)
    code = ('import wsbcn_mmseg; from mmengine.registry import MODELS; '
            'print(wsbcn_mmseg.__file__, MODELS.get("BCN"))')
    result = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, check=True,
                            env={'PYTHONPATH': str(tmp_path / 'site')})
    assert str(tmp_path / 'site') in result.stdout
    assert 'BCN' in result.stdout
    mim = tmp_path / 'site' / 'wsbcn_mmseg' / '.mim'
    result = subprocess.run([sys.executable, str(mim / 'tools' / 'train.py'),
                             str(mim / 'configs' / 'deeplabv3_r101_bcn_ws_voc.py')], cwd=tmp_path, text=True,
                            capture_output=True, env={'PYTHONPATH': str(tmp_path / 'site')})
    assert 'train.py: data folder' in result.stderr
    result = subprocess.run([str(tmp_path / 'site' / 'bin' / 'wsbcn'), 'train', 'deeplabv3_r101_bcn_ws_voc'],
                            cwd=tmp_path, text=True, capture_output=True, env={'PYTHONPATH': str(tmp_path / 'site')})
    assert 'wsbcn train: data folder' in result.stderr
    (tmp_path / 'mine.py').write_text(re.search(r'```py\n(.*?)```', PAGE.read_text(), re.S)[1])
    (tmp_path / 'digits.py').write_text("_base_ = 'wsbcn_mmseg::digits/resnet8_bcn_ws_digits.py'")
    networks = {'mine.py': 'EncoderDecoder with 110 BCN'}
    if importlib.util.find_spec('mmpretrain'):
        networks['digits.py'] = 'ImageClassifier with 9 BCN'
    result = subprocess.run([sys.executable, '-c', BUILD, *networks], cwd=tmp_path, capture_output=True, text=True,
                            check=True, env={'PYTHONPATH': str(tmp_path / 'site')})
    assert re.findall(r'\w+ with \d+ BCN', result.stdout) == [*networks.values()]


def test_extras_offer_both_stacks_and_force_neither():
    metadata = importlib.metadata.metadata('wsbcn_mmseg')
    requires = metadata.get_all('Requires-Dist')
    assert [r for r in requires if 'extra' not in r] == ['torch>=2.4']
    assert {'onedl', 'openmmlab', 'export'} <= set(metadata.get_all('Provides-Extra'))
    assert torch.__version__ >= '2.4'


def test_the_citation_has_the_version(root):
    assert f'\nversion: {wsbcn_mmseg.__version__}\n' in (root / 'CITATION.cff').read_text()


PUBLIC = ['wsbcn_mmseg', 'wsbcn_mmseg.layers', 'wsbcn_mmseg.ops', 'wsbcn_mmseg.conversion', 'wsbcn_mmseg.hooks',
          'wsbcn_mmseg.inference', 'wsbcn_mmseg.datasets', 'wsbcn_mmseg.models', 'wsbcn_mmseg.plotting',
          'wsbcn_mmseg.benchmarks', 'wsbcn.arguments', 'wsbcn.shipped', 'wsbcn.installation', 'wsbcn.command']


def functions_of(name: str, value) -> dict:
    """A function, or the constructor and the public methods of a class."""
    if inspect.isclass(value):
        members = {key: getattr(member, '__func__', getattr(member, 'fget', member))
                   for key, member in vars(value).items() if key == '__init__' or not key.startswith('_')}
        return {f'{name}.{key}': member for key, member in members.items() if inspect.isfunction(member)}
    return {name: value} if inspect.isfunction(value) else {}


@pytest.mark.parametrize('module', PUBLIC)
def test_hints_of_public_things_are_complete(module):
    """The package ships py.typed, so that type checkers rely on them."""
    module = importlib.import_module(module)
    names = getattr(module, '__all__', [name for name in vars(module) if not name.startswith('_')])
    without = []
    for name in names:
        for function_name, function in functions_of(name, getattr(module, name)).items():
            signature = inspect.signature(function)
            if (function.__module__ or '').startswith('wsbcn'):
                without += [f'{function_name}({parameter.name})' for parameter in signature.parameters.values()
                            if parameter.annotation is parameter.empty and parameter.name not in ('self', 'cls')]
                if signature.return_annotation is signature.empty and not function_name.endswith('__init__'):
                    without.append(f'{function_name} -> ?')
    assert not without


# The C++ kernels, an optional extension

@pytest.mark.skipif(shutil.which(os.environ.get('CXX', 'c++')) is None, reason='needs a C++ compiler')
def test_the_kernels_are_built_where_there_is_a_compiler():
    """Else all of their tests would be skipped."""
    assert cpp.WHY_NOT is None, f'{cpp.WHY_NOT}; {cpp.INSTALL}'


WITHOUT = """
import torch
from wsbcn_mmseg.ops import batch_channel_norm, cpp
x, c = torch.randn(2, 8, 5, 5), [torch.ones(8)] * 4 + [torch.ones(4)] * 2
print(cpp.WHY_NOT)
print(batch_channel_norm(x, *c, 4, training=True).shape)
try:
    batch_channel_norm(x, *c, 4, training=True, impl='cpp')
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize(('library', 'why'), [
    (None, 'have not been built for torch'), (b'\x7fELF of another torch', 'cannot be loaded')])
def test_everything_works_without_them(library, why, tmp_path):
    """A package without the library, or with one that this torch cannot load."""
    shutil.copytree(ROOT / 'wsbcn_mmseg', tmp_path / 'wsbcn_mmseg', ignore=shutil.ignore_patterns('_cpp_torch_*'))
    if library:
        (tmp_path / 'wsbcn_mmseg' / 'ops' / f'{cpp.library_name(torch.__version__)}.so').write_bytes(library)
    result = subprocess.run([sys.executable, '-c', WITHOUT], capture_output=True, text=True, check=True, cwd=tmp_path)
    lines = result.stdout.splitlines()
    assert why in lines[0]
    assert lines[1] == 'torch.Size([2, 8, 5, 5])'
    assert lines[2].endswith(f"{cpp.INSTALL}; or choose impl='auto'")
