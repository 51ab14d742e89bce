"""Several small trainings side by side: every method, several seeds, one table and one plot."""
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
from rich.progress import Progress

from wsbcn_mmseg.visualization import COLOURS, read_scalars, write_csv


@dataclass(frozen=True)
class Training:
    """One training of a comparison.

    Attributes:
        method: Normalisation, as the table names it.
        batch: Images per update.
        seed: Of everything random.
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
        return f'{self.method.lower().replace("+", "_")}_batch{self.batch}_seed{self.seed}'

    def settings(self) -> dict:
        """What must agree for a result of before to count as this training's."""
        return {**asdict(self), 'config': str(self.config.name), 'options': list(self.options)}


def compare(trainings: list[Training], train: Path, out: Path, metric: str, label: str, jobs: int) -> str:
    """Run trainings and write ``out.name`` as table (``.csv``, ``.md``) and plot (``.png``) into ``out``.

    Arguments are those of :func:`train_all`, and ``label``, the name of the score in the plot. Returns the table.
    """
    summary = summarise(train_all(trainings, train, out, metric, jobs))
    order = list(dict.fromkeys(training.method for training in trainings))
    table = markdown_table(summary, order)
    name = out.resolve().name
    write_csv(summary, out / f'{name}.csv')
    (out / f'{name}.md').write_text(table)
    plot_summary(summary, order, label, out / f'{name}.png')
    return table


def train_all(trainings: Iterable[Training], train: Path, out: Path, metric: str, jobs: int) -> list[dict]:
    """Run trainings, ``jobs`` at a time with one thread each; those that ``out`` has results of are not run again.

    Args:
        trainings: What to run.
        train: ``tools/train.py``.
        out: Folder of logs and of ``results.jsonl``, which gets a line as each training ends.
        metric: Key of the final score in MMEngine's scalars, such as ``'accuracy/top1'``.
        jobs: Trainings at a time.

    Returns:
        One row per training: method, batch, seed and score; score None where training failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    results = out / 'results.jsonl'
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    rows, missing = [], []
    for training in trainings:
        row = next((row for row in done if row['settings'] == json.loads(json.dumps(training.settings()))), None)
        rows.append(row) if row else missing.append(training)
    pool = ThreadPoolExecutor(jobs)
    with Progress() as progress, results.open('a') as file, _cancelling(pool):
        task = progress.add_task('Training', total=len(rows) + len(missing), completed=len(rows))
        futures = {pool.submit(_train, training, train, out, metric): training for training in missing}
        for future in as_completed(futures):
            training = futures[future]
            score = future.result()
            row = dict(method=training.method, batch=training.batch, seed=training.seed, score=score,
                       settings=training.settings())
            if score is not None:  # what failed is tried again next time
                file.write(json.dumps(row) + '\n')
                file.flush()
            rows.append(row)
            shown = 'failed' if score is None else f'{score:.2f}'
            progress.console.print(f'{training.method}, batch {training.batch}, seed {training.seed}: {shown}')
            progress.advance(task)
    return [{key: row[key] for key in ('method', 'batch', 'seed', 'score')} for row in rows]


@contextmanager
def _cancelling(pool: ThreadPoolExecutor) -> Iterator[None]:
    """Start nothing more after an interruption."""
    try:
        yield
    finally:
        pool.shutdown(cancel_futures=True)


def _train(training: Training, train: Path, out: Path, metric: str) -> float | None:
    work_dir = out / training.name
    command = [sys.executable, str(train), str(training.config), '--work-dir', str(work_dir), '--cfg-options',
               f'randomness.seed={training.seed}', *training.options]
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / 'output.txt').open('w') as log:
        failed = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT,
                                env={**os.environ, 'OMP_NUM_THREADS': '1', **training.environment}).returncode
    scores = [] if failed else [line[metric] for line in read_scalars(work_dir) if metric in line]
    return scores[-1] if scores else None


def summarise(rows: list[dict]) -> list[dict]:
    """Mean and standard error of the score over seeds, one row per method and batch, in the order first seen."""
    groups: dict[tuple, list[float]] = {}
    for row in sorted(rows, key=lambda row: -row['batch']):
        groups.setdefault((row['method'], row['batch']), []).extend(
            [] if row['score'] is None else [row['score']])
    return [dict(method=method, batch=batch, seeds=len(scores), mean=statistics.mean(scores) if scores else None,
                 std_error=statistics.stdev(scores) / len(scores)**.5 if len(scores) > 1 else None)
            for (method, batch), scores in groups.items()]


def markdown_table(summary: list[dict], order: list[str]) -> str:
    """Methods down, batch sizes across, mean ± standard error in the cells; a dash where nothing was run."""
    batches = sorted({row['batch'] for row in summary}, reverse=True)
    lines = ['| | ' + ' | '.join(f'{batch} images per update' if batch > 1 else '1 image per update'
                                 for batch in batches) + ' |', '|---|' + '---|' * len(batches)]
    for method in order:
        cells = [next((row for row in summary if (row['method'], row['batch']) == (method, batch)), None)
                 for batch in batches]
        lines.append(f'| {method} | ' + ' | '.join(map(_cell, cells)) + ' |')
    return '\n'.join(lines) + '\n'


def _cell(row: dict | None) -> str:
    if row is None or row['mean'] is None:
        return '–' if row is None else 'failed'
    return f'{row["mean"]:.2f}' + ('' if row['std_error'] is None else f' ± {row["std_error"]:.2f}')


def plot_summary(summary: list[dict], order: list[str], label: str, out: Path) -> None:
    """Points with standard errors, methods across, one panel per batch size, all on one scale.

    Args:
        summary: Rows of :func:`summarise`.
        order: Methods from left to right.
        label: Of the score's axis.
        out: Picture to write; the suffix says the format.
    """
    batches = sorted({row['batch'] for row in summary}, reverse=True)
    figure, panels = plt.subplots(1, len(batches), figsize=(3.6 * len(batches), 3.4), sharey=True, squeeze=False,
                                  layout='constrained')
    for axes, batch in zip(panels[0], batches, strict=True):
        for colour, method in zip(itertools.cycle(COLOURS), order, strict=False):
            row = next((row for row in summary if (row['method'], row['batch']) == (method, batch)), None)
            if row and row['mean'] is not None:
                axes.errorbar(method, row['mean'], row['std_error'], marker='o', capsize=4, color=colour)
                axes.annotate(f'{row["mean"]:.1f}', (method, row['mean']), xytext=(7, 0), textcoords='offset points',
                              va='center', fontsize=8)
            else:
                axes.plot(method, [float('nan')])
        axes.set_title(f'{batch} images per update' if batch > 1 else '1 image per update')
        axes.tick_params(axis='x', rotation=30)
        axes.margins(x=.15, y=.12)
        axes.grid(axis='y', alpha=.3)
    panels[0][0].set_ylabel(label)
    figure.savefig(out, dpi=120)
    plt.close(figure)
