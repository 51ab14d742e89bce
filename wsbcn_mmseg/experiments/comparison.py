"""Several small trainings side by side: every method, several seeds, one table and one plot."""
import argparse
import hashlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
from mmengine.config import DictAction
from rich.progress import Progress

from wsbcn_mmseg.plotting import COLORS
from wsbcn_mmseg.runtime.building import quietly
from wsbcn_mmseg.runtime.errors import UsageError
from wsbcn_mmseg.runtime.launch import load_config
from wsbcn_mmseg.runtime.records import markdown_table, read_jsonl, read_scalars, write_csv

from .method import file_name

KEPT = ('mIoU', 'loss', 'top1')  # final scalars of a training that are kept in addition to the reported one


class TrainingsFailed(RuntimeError):
    """Some trainings of a comparison failed; the message names the first and its reason."""


@cache
def config_digest(config: Path, environment: tuple[tuple[str, str], ...]) -> str | None:
    """A hash of all settings of a config, whatever the paths of data and weights; None if it cannot be computed."""
    same_paths = {name: name for name in os.environ if name.endswith('_ROOT') or name in ('WEIGHTS', 'PRETRAINED')}
    try:
        with mock.patch.dict(os.environ, {**same_paths, **dict(environment)}), quietly():
            cfg = load_config(str(config), None, None, 'none')
        text = json.dumps(cfg.to_dict(), default=lambda value: getattr(value, '__qualname__', type(value).__name__))
    except (UsageError, TypeError):  # cannot be read, or has keys that JSON does not know
        return None
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Training:
    """One training of a comparison.

    Attributes:
        method: Name of the normalization in the table.
        batch: Images per update in the config; checked before a training starts.
        seed: Random seed.
        config: Config file.
        options: ``--cfg-options`` of ``tools/train.py``.
        environment: Variables that the config reads.
    """
    method: str
    batch: int
    seed: int
    config: Path
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        return file_name(f'{self.method} batch{self.batch} seed{self.seed}')

    def settings(self) -> dict:
        """Key of a result: an earlier result is reused if it has the same key."""
        digest = config_digest(self.config, tuple(self.environment.items()))
        return {**asdict(self), 'config': self.config.name, 'options': list(self.options),
                **(dict(config_digest=digest) if digest else {})}

    def matches(self, row: dict) -> bool:
        """Whether a result is of this training. Results of earlier versions have no ``config_digest``."""
        saved, own = row['settings'], json.loads(json.dumps(self.settings()))
        return saved == {name: value for name, value in own.items() if name != 'config_digest' or name in saved}

    def check_batch(self) -> None:
        """Raise an error if the config does not have ``batch`` images per update."""
        parser = argparse.ArgumentParser()
        parser.add_argument('--cfg-options', nargs='+', action=DictAction)
        given = parser.parse_args(['--cfg-options', *self.options] if self.options else []).cfg_options
        try:
            with mock.patch.dict(os.environ, self.environment), quietly():
                cfg = load_config(str(self.config), given, None, 'none')
        except UsageError:  # the training then fails for this reason
            return
        passes = cfg.optim_wrapper.get('accumulative_counts', 1)
        images = cfg.train_dataloader.batch_size * passes * cfg.get('num_processes', 1)
        if images != self.batch:
            raise ValueError(f'{self.name} is listed with {self.batch} images per update, but {self.config.name} has '
                             f'{images} (train_dataloader.batch_size={cfg.train_dataloader.batch_size}, '
                             f'accumulative_counts={passes}); set them by an option, or by a variable that the config '
                             'reads')


@dataclass(frozen=True)
class Comparison:
    """A set of trainings, and how to run and report them.

    Attributes:
        trainings: The trainings to run.
        train: Path of ``tools/train.py``.
        out: Folder for logs, results, table and plot.
        metric: Key of the reported score in MMEngine's scalars, such as ``'accuracy/top1'``.
        label: Name of the score in the plot.
        jobs: Number of trainings to run in parallel, with one thread each.
        reuse: A ``results.jsonl`` of finished trainings to reuse. Defaults to None.
    """
    trainings: list[Training]
    train: Path
    out: Path
    metric: str
    label: str
    jobs: int
    reuse: Path | None = None

    def run(self) -> str:
        """Run the trainings and write ``out.name`` as table (``.csv``, ``.md``) and plot (``.png``) into ``out``.

        Returns:
            The table in Markdown.

        Raises:
            TrainingsFailed: If a training failed; raised after the other trainings are run and the files are written.
        """
        rows = train_all(self)
        summary = summarize(rows)
        order = list(dict.fromkeys(training.method for training in self.trainings))
        table = comparison_table(summary, order)
        name = self.out.resolve().name
        write_csv(summary, self.out / f'{name}.csv')
        (self.out / f'{name}.md').write_text(table)
        plot_summary(summary, order, self.label, self.out / f'{name}.png')
        check_all_succeeded(rows)
        return table


def check_all_succeeded(rows: list[dict]) -> None:
    """Raise TrainingsFailed if a row of :func:`train_all` has no score."""
    failed = [row for row in rows if row['score'] is None]
    if failed:
        raise TrainingsFailed(f'{len(failed)} of {len(rows)} trainings failed, the first is {failed[0]["method"]}, '
                              f'batch {failed[0]["batch"]}, seed {failed[0]["seed"]}: {failed[0]["reason"]}')


def check_names(trainings: list[Training]) -> None:
    """Raise an error if two trainings have the same name, since the second would delete the folder of the first."""
    name, count = Counter(training.name for training in trainings).most_common(1)[0] if trainings else ('', 0)
    if count > 1:
        raise ValueError(f'{count} trainings have the name {name}, which is made of the letters and digits of the '
                         'method, the batch size and the seed; give the methods different names')


def train_all(comparison: Comparison) -> list[dict]:
    """Run trainings, except those with results in ``out`` or ``reuse``.

    Each finished training adds a line to ``out / 'results.jsonl'``.

    Returns:
        One row per training: method, batch, seed, score, and all final ``scores``. If a training failed, its score is
        None and ``reason`` is the last line of its log.

    Raises:
        ValueError: If two trainings have the same name, or the config of a training does not have ``batch`` images per
            update; raised before anything runs.
    """
    check_names(comparison.trainings)
    comparison.out.mkdir(parents=True, exist_ok=True)
    results = comparison.out / 'results.jsonl'
    done = [row for path in (results, comparison.reuse) if path and path.exists() for row in read_jsonl(path)]
    rows, missing = [], []
    for training in comparison.trainings:
        row = next(filter(training.matches, done), None)
        rows.append(row) if row else missing.append(training)
    _report_reuse(rows, len(comparison.trainings))
    for training in missing:
        training.check_batch()
    # before any training starts: reading a config changes os.environ for a moment, and a training would inherit that
    settings = {training: training.settings() for training in missing}
    pool = ThreadPoolExecutor(comparison.jobs)
    with Progress() as progress, results.open('a') as file, _cancelling(pool):
        task = progress.add_task('Training', total=len(rows) + len(missing), completed=len(rows))
        futures = {pool.submit(_train, training, comparison): training for training in missing}
        for future in as_completed(futures):
            training, outcome = futures[future], future.result()
            row = dict(method=training.method, batch=training.batch, seed=training.seed, **outcome,
                       settings=settings[training])
            if row['score'] is not None:  # failed trainings run again next time
                file.write(json.dumps(row) + '\n')
                file.flush()
            rows.append(row)
            shown = f'failed: {row["reason"]}' if row['score'] is None else f'{row["score"]:.2f}'
            progress.console.print(f'{training.method}, batch {training.batch}, seed {training.seed}: {shown}')
            progress.advance(task)
    return rows


def _report_reuse(rows: list[dict], total: int) -> None:
    if rows:
        print(f'Already finished: {len(rows)} of {total} trainings')
    if unknown := sum('config_digest' not in row['settings'] for row in rows):
        print(f'Recorded without the settings of their configs, which may have changed since: {unknown}')


@contextmanager
def _cancelling(pool: ThreadPoolExecutor) -> Iterator[None]:
    """Start no more trainings after an interruption."""
    try:
        yield
    finally:
        pool.shutdown(cancel_futures=True)


def _train(training: Training, comparison: Comparison) -> dict:
    """The final scores of one training, or the reason why there are none."""
    work_dir = comparison.out / training.name
    shutil.rmtree(work_dir, ignore_errors=True)  # left by an interrupted training
    work_dir.mkdir(parents=True)
    command = [sys.executable, str(comparison.train), str(training.config), '--work-dir', str(work_dir),
               '--cfg-options', f'randomness.seed={training.seed}', *training.options]
    log = work_dir / 'output.txt'
    with log.open('w') as file:
        failed = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT,
                                env={**os.environ, 'OMP_NUM_THREADS': '1', **training.environment}).returncode
    if failed:
        lines = [line for line in log.read_text(errors='replace').splitlines() if line.strip()]
        return dict(score=None, reason=lines[-1] if lines else f'exit status {failed}')
    scores = {key: value for line in read_scalars(work_dir) for key, value in line.items()
              if isinstance(value, (int, float))}  # the last value of each
    if comparison.metric not in scores:
        return dict(score=None, reason=f'{log} has no {comparison.metric}')
    for checkpoint in work_dir.glob('*.pth'):
        checkpoint.unlink()
    kept = {key: value for key, value in scores.items() if key.split('/')[-1] in KEPT or key == comparison.metric}
    return dict(score=scores[comparison.metric], scores=kept)


def summarize(rows: list[dict]) -> list[dict]:
    """Mean and standard error of the score over seeds, one row per method and batch, in the order first seen."""
    groups: dict[tuple, list[float]] = {}
    for row in sorted(rows, key=lambda row: -row['batch']):
        groups.setdefault((row['method'], row['batch']), []).extend(
            [] if row['score'] is None else [row['score']])
    return [dict(method=method, batch=batch, seeds=len(scores), mean=statistics.mean(scores) if scores else None,
                 std_error=statistics.stdev(scores) / len(scores)**.5 if len(scores) > 1 else None)
            for (method, batch), scores in groups.items()]


def comparison_table(summary: list[dict], order: list[str]) -> str:
    """Methods as rows, batch sizes as columns, mean ± standard error in the cells; a dash for missing results."""
    found = {(row['method'], row['batch']): row for row in summary}
    titles = {batch: f'{batch} images per update' if batch > 1 else '1 image per update'
              for batch in sorted({row['batch'] for row in summary}, reverse=True)}
    rows = [{'method': method, **{title: _cell(found.get((method, batch))) for batch, title in titles.items()}}
            for method in order]
    return markdown_table(rows, dict.fromkeys(('method', *titles.values()), '')) + '\n'


def _cell(row: dict | None) -> str:
    if row is None or row['mean'] is None:
        return '–' if row is None else 'failed'
    return f'{row["mean"]:.2f}' + ('' if row['std_error'] is None else f' ± {row["std_error"]:.2f}')


def plot_summary(summary: list[dict], order: list[str], label: str, out: Path) -> None:
    """Points with standard errors: methods on the horizontal axis, one panel per batch size, on a common scale.

    Args:
        summary: Rows of :func:`summarize`.
        order: Methods from left to right.
        label: Label of the score's axis.
        out: Image to write; the suffix determines the format.
    """
    batches = sorted({row['batch'] for row in summary}, reverse=True)
    width = max(3.6, 0.6 * len(order))  # so that labels do not overlap
    figure, panels = plt.subplots(1, len(batches), figsize=(width * len(batches), 3.8), sharey=True, squeeze=False,
                                  layout='constrained')
    for axes, batch in zip(panels[0], batches, strict=True):
        for color, method in zip(itertools.cycle(COLORS), order, strict=False):
            row = next((row for row in summary if (row['method'], row['batch']) == (method, batch)), None)
            if row and row['mean'] is not None:
                axes.errorbar(method, row['mean'], row['std_error'], marker='o', capsize=4, color=color)
                axes.annotate(f'{row["mean"]:.1f}', (method, row['mean']), xytext=(7, 0), textcoords='offset points',
                              va='center', fontsize=8)
            else:
                axes.plot(method, [float('nan')])
        axes.set_title(f'{batch} images per update' if batch > 1 else '1 image per update')
        plt.setp(axes.get_xticklabels(), rotation=30, ha='right', rotation_mode='anchor')
        axes.margins(x=.15, y=.12)
        axes.grid(axis='y', alpha=.3)
    panels[0][0].set_ylabel(label)
    figure.savefig(out, dpi=120)
    plt.close(figure)
