"""The tables of docs/stacks.md: what holds for each config with each OpenMMLab stack.

tools/run_stack_tests.sh STACK calls pytest with ``--stack-table=STACK``. The results of each stack are kept in
docs/stacks/STACK.csv, and the page is made from all of them.
"""
import csv
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / 'docs'
TABLE = re.compile(r'(?<=<!-- made by tests/stack_table.py -->\n).*?(?=<!-- end -->)', re.S)
STAGES = ('trains', 'evaluates', 'resumes')
PACKAGES = {'openmmlab': ('mmcv', 'mmengine', 'mmsegmentation', 'mmpretrain', 'mmdet', 'mmaction2'),
            'onedl': ('onedl-mmcv', 'onedl-mmengine', 'onedl-mmsegmentation', 'onedl-mmpretrain',
                      'onedl-mmdetection', 'mmaction2')}


def pytest_addoption(parser):
    parser.addoption('--stack-table', choices=list(PACKAGES), metavar='STACK',
                     help='write what holds for each config to docs/stacks/STACK.csv and docs/stacks.md')


def pytest_configure(config):
    if stack := config.getoption('stack_table'):
        config.pluginmanager.register(StackTable(stack))


class StackTable:
    """Collects the stages that each config passed."""

    def __init__(self, stack: str):
        self.stack, self.rows, self.reasons = stack, [], {}

    def pytest_runtest_logreport(self, report):
        if report.skipped:
            self.reasons[report.nodeid] = report.longrepr[-1].removeprefix('Skipped: ')
        elif report.failed:
            self.reasons[report.nodeid] = report.longrepr.reprcrash.message.splitlines()[0][:200]
        properties = dict(report.user_properties)
        if report.when == 'teardown' and 'stages' in properties:  # a fixture's, which the call does not have yet
            passed = properties['stages']
            name = re.search(r'\[(.*)\]', report.nodeid)[1].removesuffix('.py')
            self.rows.append({'config': name, **{stage: 'yes' if stage in passed else 'no' for stage in STAGES},
                              'reason': self.reasons.get(report.nodeid, '')})

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session):
        if hasattr(session.config, 'workerinput'):  # a process of pytest-xdist, which has some of the tests
            return
        path = DOCS / 'stacks' / f'{self.stack}.csv'
        path.parent.mkdir(exist_ok=True)
        rows = {row['config']: row for row in [*_rows(path)[1:], *self.rows]}  # of configs that did not run now, too
        with path.open('w', newline='') as file:
            writer = csv.DictWriter(file, ('config', *STAGES, 'reason'))
            writer.writeheader()
            writer.writerows([{'config': f'torch {version("torch")}, {_versions(self.stack)}'},
                              *(rows[name] for name in sorted(rows))])
        write_page()


def _rows(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def _versions(stack: str) -> str:
    found = []
    for package in PACKAGES[stack]:
        try:
            found.append(f'{package} {version(package)}')
        except PackageNotFoundError:
            found.append(f'no {package}')
    return ', '.join(found)


def write_page() -> None:
    """Make the table of docs/stacks.md from the files in docs/stacks."""
    stacks, lines = {}, ['']
    for path in sorted((DOCS / 'stacks').glob('*.csv')):
        header, *rows = _rows(path)
        stacks[path.stem] = {row['config']: row for row in rows}
        lines.append(f'- **{path.stem}**: {header["config"]}')
    lines += ['', f'| Config | {" | ".join(stacks)} |', f'|---|{"---|" * len(stacks)}']
    for config in sorted(set().union(*stacks.values()), key=lambda name: (name.count('/'), name)):
        cells = [_cell(stack.get(config)) for stack in stacks.values()]
        lines.append(f'| `{config}` | {" | ".join(cells)} |')
    page = DOCS / 'stacks.md'
    page.write_text(TABLE.sub(lambda _: '\n'.join([*lines, '', '']), page.read_text()))


def _cell(row: dict | None) -> str:
    if row is None:
        return 'not tried'
    passed = ', '.join(stage for stage in STAGES if row[stage] == 'yes') or 'no'
    return f'{passed}: {row["reason"]}' if row['reason'] else passed
