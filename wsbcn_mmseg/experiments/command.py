"""Arguments and error handling of the commands that compare trainings."""
import argparse
import importlib.util
from pathlib import Path

from wsbcn_mmseg.runtime.command import exit_with

from .comparison import Comparison, TrainingsFailed, check_all_succeeded


def comparison_parser(description: str, out: Path, seeds: int, methods: tuple[str, ...]) -> argparse.ArgumentParser:
    """A parser of ``--out``, ``--seeds``, ``--jobs``, ``--methods`` and ``--reuse``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--out', type=Path, default=out, help='folder of logs, table and plot')
    parser.add_argument('--seeds', type=_positive, default=seeds, help='trainings of each kind')
    parser.add_argument('--jobs', type=_positive, default=2, help='trainings at a time, one thread each')
    parser.add_argument('--methods', nargs='+', choices=methods, default=methods, metavar='METHOD',
                        help='rows of the table')
    parser.add_argument('--reuse', type=Path, help='a results.jsonl of finished trainings to take over')
    return parser


def require_packages(**advice: str) -> None:
    """End the program with a sentence if a package that the trainings import is not installed.

    Args:
        advice: What to run for each package, by its import name, such as ``sklearn='pip install scikit-learn'``.
    """
    missing = [name for name in advice if importlib.util.find_spec(name) is None]
    if missing:
        exit_with(f'this comparison needs {", ".join(missing)}, not installed here; run: '
                  f'{" && ".join(dict.fromkeys(advice[name] for name in missing))}')


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def finish(comparison: Comparison) -> None:
    """Run a comparison and print its table; if a training failed, end the program with the reason."""
    try:
        print(comparison.run())
    except TrainingsFailed as error:
        exit_with(error)


def report_failures(rows: list[dict]) -> None:
    """End the program with the reason if a training of :func:`~wsbcn_mmseg.experiments.comparison.train_all` failed."""
    try:
        check_all_succeeded(rows)
    except TrainingsFailed as error:
        exit_with(error)
