"""Each row of a table at its own best learning rate: chosen on validation images, reported on test images."""
import statistics

from .comparison import Training

Key = tuple[str, int, float]  # row, epochs, learning rate


def best_settings(groups: dict[Key, list[Training]], results: list[dict], choose: str, report: str) -> list[dict]:
    """For each row and budget, the learning rate with the best mean of ``choose`` over the seeds.

    Args:
        groups: The trainings of each row, budget and learning rate, one per seed.
        results: Rows of :func:`~wsbcn_mmseg.experiments.comparison.train_all`.
        choose: Key of the validation score in ``scores``.
        report: Key of the score to report.

    Returns:
        Dictionaries of row, epochs, lr, seeds, and mean and standard error of ``choose`` and ``report``. Learning
        rates with a failed training are not chosen; rows without any other are left out.
    """
    scores = {(row['method'], row['seed']): row['scores'] for row in results if row['score'] is not None}
    best: dict[tuple[str, int], dict] = {}
    for (name, epochs, lr), trainings in groups.items():
        found = [scores.get((training.method, training.seed)) for training in trainings]
        if None in found:
            continue
        row = dict(row=name, epochs=epochs, lr=lr, seeds=len(found))
        for part, key in (('validation', choose), ('test', report)):
            values = [score[key] for score in found]
            row[part] = statistics.mean(values)
            row[f'{part}_std_error'] = statistics.stdev(values) / len(values)**.5 if len(values) > 1 else None
        if (name, epochs) not in best or row['validation'] > best[name, epochs]['validation']:
            best[name, epochs] = row
    return list(best.values())


def selection_table(rows: list[dict]) -> str:
    """Rows down, budgets across: test score with its standard error, and the learning rate that was chosen."""
    budgets = sorted({row['epochs'] for row in rows})
    lines = ['| | ' + ' | '.join(f'{epochs} epochs' for epochs in budgets) + ' |', '|---|' + '---|' * len(budgets)]
    for name in dict.fromkeys(row['row'] for row in rows):
        found = {row['epochs']: row for row in rows if row['row'] == name}
        lines.append(f'| {name} | ' + ' | '.join(_cell(found.get(epochs)) for epochs in budgets) + ' |')
    return '\n'.join(lines) + '\n'


def _cell(row: dict | None) -> str:
    if row is None:
        return '–'
    error = '' if row['test_std_error'] is None else f' ± {row["test_std_error"]:.2f}'
    return f'{row["test"]:.2f}{error} (lr {row["lr"]:g})'
