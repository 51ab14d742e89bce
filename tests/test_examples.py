"""The scripts of examples/ run as they stand, on their own drawn images."""
import re

import pytest
from conftest import ROOT, run_command

EXAMPLES = {'timm_plain_loop': ('timm', ), 'smp_lightning': ('segmentation_models_pytorch', 'lightning'),
            'torchvision_accelerate': ('torchvision', 'accelerate')}


@pytest.mark.parametrize('name', EXAMPLES)
def test_an_example_trains_saves_folds_and_exports(name, tmp_path):
    for package in EXAMPLES[name]:
        pytest.importorskip(package, reason=f'needs {package}')
    # Importing the package first lets a torchvision that was built for another torch be imported
    code = 'import sys, runpy, wsbcn_mmseg; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name="__main__")'
    result = run_command('python', '-c', code, ROOT / 'examples' / f'{name}.py', '--images', 8, '--out',
                         tmp_path / 'weights.pth', PYTHONPATH=f'{ROOT}:{ROOT / "examples"}')
    assert re.search(r'Converted \d\d norms and \d\d convolutions', result.stdout)
    difference = float(re.search(r'the logits differ by (\S+)', result.stdout)[1])
    assert difference < 1e-3
    assert (tmp_path / 'weights.pth').is_file()
    assert 'constant update rate' not in result.stderr
