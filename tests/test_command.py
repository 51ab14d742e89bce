"""The command wsbcn, and the arguments of the tools."""
import runpy
import subprocess
import sys

import pytest
from conftest import ROOT

from wsbcn_mmseg.benchmarks import BENCHMARKS
from wsbcn_mmseg.export import FORMATS, TOLERANCE
from wsbcn_mmseg.inference import INFERENCE_MODES

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
    assert names['export']['FORMATS'] == tuple(FORMATS) and names['export']['TOLERANCE'] == TOLERANCE
    assert names['infer']['MODES'] == INFERENCE_MODES
