"""The table of docs/faults.md: what tests marked with ``fault`` tried and what was survived.

python -m pytest -m fault --faults-table=docs/faults.md
"""
import re
from collections import Counter
from pathlib import Path

import pytest

TABLE = re.compile(r'(?<=<!-- made by tests/faults_table.py -->\n).*?(?=<!-- end -->)', re.S)


def pytest_addoption(parser):
    parser.addoption('--faults-table', type=Path, metavar='FILE',
                     help='write the outcomes of the tests marked with fault to the table in this file')


def pytest_configure(config):
    config.addinivalue_line('markers', 'fault(kind, tried, outcome): a row of the table in docs/faults.md')
    if path := config.getoption('faults_table'):
        config.pluginmanager.register(FaultsTable(path))


class FaultsTable:
    """Counts cases and survivals for each row."""

    def __init__(self, path: Path):
        self.path, self.cases, self.survived = path, Counter(), Counter()

    def pytest_collection_modifyitems(self, items):
        for item in items:
            if marker := item.get_closest_marker('fault'):
                item.user_properties.append(('fault', marker.args))

    def pytest_runtest_logreport(self, report):
        row = dict(report.user_properties).get('fault')
        if row and (report.when == 'call' or not report.passed):
            self.cases[tuple(row)] += 1
            self.survived[tuple(row)] += report.passed

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session):
        if hasattr(session.config, 'workerinput'):  # a process of pytest-xdist, which has some of the tests
            return
        rows = sorted(self.cases)
        lines = ['| Kind | What was tried | What happens | Tests | Passed |', '|---|---|---|---|---|',
                 *(f'| {" | ".join(row)} | {self.cases[row]} | {self.survived[row]} |' for row in rows)]
        table = '\n'.join(['', *lines, '', ''])
        self.path.write_text(TABLE.sub(lambda _: table, self.path.read_text()))
