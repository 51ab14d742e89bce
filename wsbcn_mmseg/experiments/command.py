"""Error handling of the commands that compare trainings."""
from wsbcn_mmseg.runtime.command import exit_with

from .comparison import Comparison, TrainingsFailed, check_all_succeeded


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
