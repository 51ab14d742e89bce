"""Error handling of the commands that compare trainings."""
import importlib.util

from wsbcn_mmseg.runtime.command import exit_with

from .comparison import Comparison, TrainingsFailed, check_all_succeeded


def require_packages(**advice: str) -> None:
    """Exit with a message if a package that the trainings import is not installed.

    Args:
        advice: The command to install each package, by import name, such as ``sklearn='pip install scikit-learn'``.
    """
    missing = [name for name in advice if importlib.util.find_spec(name) is None]
    if missing:
        exit_with(f'this comparison needs {", ".join(missing)}, not installed here; run: '
                  f'{" && ".join(dict.fromkeys(advice[name] for name in missing))}')


def finish(comparison: Comparison) -> None:
    """Run a comparison and print its table; if a training failed, exit with the reason."""
    try:
        print(comparison.run())
    except TrainingsFailed as error:
        exit_with(error)


def report_failures(rows: list[dict]) -> None:
    """Exit with the reason if a training of :func:`~wsbcn_mmseg.experiments.comparison.train_all` failed."""
    try:
        check_all_succeeded(rows)
    except TrainingsFailed as error:
        exit_with(error)
