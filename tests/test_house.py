"""The structure of the package: the direction of imports, the size of modules and functions, and the spelling."""
import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import ROOT

PACKAGE = ROOT / 'wsbcn_mmseg'
# From the bottom to the top; a part may import those before it
PARTS = ['registry', 'ops', 'diagnostics', 'runtime', 'plotting', 'datasets', 'layers', 'memory', 'models',
         'conversion', 'hooks', 'inference', 'export', 'experiments', 'benchmarks', 'registration', 'engine',
         'analysis', 'visualization']


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imported_parts(path: Path) -> set[str]:
    """Parts of this package that a file imports anywhere, relative imports resolved."""
    package = ['wsbcn_mmseg', *path.relative_to(PACKAGE).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = '.'.join([*package[:len(package) + 1 - node.level], *filter(None, [node.module])]) \
                if node.level else node.module
            names |= {f'{origin}.{alias.name}' for alias in node.names}
    parts = {name.split('.')[1] for name in names if name.startswith('wsbcn_mmseg.')}
    return parts & set(PARTS)


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob('*.py'))


def test_every_part_has_its_place():
    parts = {part_of(path) for path in sources('wsbcn_mmseg')} - {'__init__'}
    assert parts == set(PARTS)


@pytest.mark.parametrize('part', PARTS)
def test_imports_point_downward(part):
    below = set(PARTS[:PARTS.index(part) + 1])
    upward = {str(path.relative_to(ROOT)): imported_parts(path) - below
              for path in sources('wsbcn_mmseg') if part_of(path) == part}
    assert not {path: parts for path, parts in upward.items() if parts}


def test_modules_stay_short():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines())
               for path in sources('wsbcn', 'wsbcn_mmseg', 'tools')}
    assert not {path: length for path, length in lengths.items() if length > 350}


def lengths_of_functions(path: Path) -> Iterator[tuple[str, int]]:
    """Lines of code of each function of a file, without docstring, comments and empty lines; those with a reason to be
    long, a comment "Long: ..." above, are left out."""
    lines = path.read_text().splitlines()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        first = min(part.lineno for part in (node, *node.decorator_list))
        if lines[first - 2].lstrip().startswith('# Long: '):
            continue
        start = node.body[0].end_lineno + 1 if ast.get_docstring(node) else node.body[0].lineno
        code = [*lines[node.lineno - 1:node.body[0].lineno - 1], *lines[start - 1:node.end_lineno]]
        yield node.name, sum(bool(line.strip()) and not line.lstrip().startswith('#') for line in code)


def test_functions_stay_short():
    found = {f'{path.relative_to(ROOT)}: {name}': length for path in sources('wsbcn', 'wsbcn_mmseg', 'tools')
             for name, length in lengths_of_functions(path)}
    assert not {name: length for name, length in found.items() if length > 40}


def test_spelling_is_american():
    pytest.importorskip('codespell_lib', reason='needs codespell')
    listed = subprocess.run(['git', 'ls-files', '*.py', '*.md', '*.sh', '*.toml', '*.txt'], cwd=ROOT, check=True,
                            capture_output=True, text=True).stdout.split()
    result = subprocess.run([sys.executable, '-m', 'codespell_lib', '--builtin', 'clear,rare,en-GB_to_en-US', *listed],
                            cwd=ROOT, capture_output=True, text=True)
    assert not result.stdout


def test_spelling_inside_names_is_american():
    """codespell takes a name with underscores for one word."""
    british = re.compile('colour|centr[e]|normalis|standardis|initialis|summaris|visualis|labell(ed|ing)|grey', re.I)
    found = {f'{path.relative_to(ROOT)}:{number}': line.strip()
             for path in sources('wsbcn_mmseg', 'tools', 'configs', 'examples')
             for number, line in enumerate(path.read_text().splitlines(), 1) if british.search(line)}
    assert not found


def missing_names_of_torch(path: Path) -> list[str]:
    """Attributes of torch and its modules, written out in code, that this torch does not have."""
    missing = []
    for node in ast.walk(ast.parse(path.read_text())):
        text = ast.unparse(node) if isinstance(node, ast.Attribute) else ''
        if re.fullmatch(r'torch(\.[a-zA-Z]\w*)+', text) and not text.startswith('torch.ops.'):  # ours
            value = torch
            for name in text.split('.')[1:]:
                if not isinstance(value, ModuleType):
                    break
                if not hasattr(value, name) and importlib.util.find_spec(f'{value.__name__}.{name}') is None:
                    missing.append(f'{path.name}: {text}')
                    break
                value = getattr(value, name, None)
    return missing


def test_names_of_torch_exist_in_code_that_only_a_gpu_runs():
    assert [name for file in sources('wsbcn_mmseg', 'wsbcn', 'tools') for name in missing_names_of_torch(file)] == []
