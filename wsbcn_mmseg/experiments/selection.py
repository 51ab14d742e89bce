"""Select the best learning rate of each method on validation images, and report scores on test images."""
import statistics

from wsbcn_mmseg.runtime.records import markdown_table

from .comparison import Training

Setting = tuple[str, int, float]  # method, epochs, learning rate


def best_settings(groups: dict[Setting, list[Training]], results: list[dict], choose: str) -> list[Setting]:
    """For each method and budget, the learning rate whose first seed has the highest score ``choose``.

    Args:
        groups: The trainings of each method, budget and learning rate, one per seed.
        results: Rows of :func:`~wsbcn_mmseg.experiments.comparison.train_all`.
        choose: Key of the validation score in ``scores``.

    Returns:
        One setting for each method and budget, except those where every first seed failed.
    """
    scores = _scores(results)
    best: dict[tuple[str, int], Setting] = {}
    for setting, (first, *_) in groups.items():
        if _key(first) not in scores:
            continue
        so_far = best.get(setting[:2])
        if so_far is None or scores[_key(first)][choose] > scores[_key(groups[so_far][0])][choose]:
            best[setting[:2]] = setting
    return list(best.values())


def setting_rows(groups: dict[Setting, list[Training]], results: list[dict], choose: str, report: str) -> list[dict]:
    """A row for every setting with results: means and standard errors over its seeds.

    Args:
        groups, results, choose: See :func:`best_settings`.
        report: Key of the test score in ``scores``.

    Returns:
        Dictionaries of method, epochs, lr, chosen (whether it is one of :func:`best_settings`), seeds, validation,
        validation_std_error, test, test_std_error and the training loss at the end.
    """
    scores, best = _scores(results), best_settings(groups, results, choose)
    rows = []
    for setting, trainings in groups.items():
        found = [scores[_key(training)] for training in trainings if _key(training) in scores]
        if not found:
            continue
        row = dict(zip(('method', 'epochs', 'lr'), setting, strict=True), chosen=setting in best, seeds=len(found))
        for part, key in (('validation', choose), ('test', report)):
            values = [score[key] for score in found]
            row[part] = statistics.mean(values)
            row[f'{part}_std_error'] = statistics.stdev(values) / len(values)**.5 if len(values) > 1 else None
        losses = [score['loss'] for score in found if 'loss' in score]  # short trainings log no loss
        rows.append(row | dict(loss=statistics.mean(losses) if losses else None))
    return rows


def setting_table(rows: list[dict]) -> str:
    """Rows of :func:`setting_rows` in Markdown; test scores of chosen learning rates are bold."""
    shown = [row | dict(validation=_mean_and_error(row, 'validation'),
                        test=f'**{_mean_and_error(row, "test")}**' if row['chosen'] else _mean_and_error(row, 'test'))
             for row in rows]
    return markdown_table(shown, dict(method='', epochs='d', lr='g', seeds='d', validation='', test='',
                                      loss='.2f')) + '\n'


def _scores(results: list[dict]) -> dict[tuple[str, int], dict]:
    return {(row['method'], row['seed']): row['scores'] for row in results if row['score'] is not None}


def _key(training: Training) -> tuple[str, int]:
    return training.method, training.seed


def _mean_and_error(row: dict, part: str) -> str:
    error = row[f'{part}_std_error']
    return f'{row[part]:.1f}' + ('' if error is None else f' ± {error:.1f}')
