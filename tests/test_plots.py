"""Pictures of runs, from logs as MMEngine writes them."""
import json
import runpy

import pytest
from conftest import ROOT
from matplotlib.figure import Figure
from PIL import Image

from wsbcn_mmseg.plotting import plot_curves, plot_runs


def write_log(work_dir, lines):
    """As MMEngine's LocalVisBackend does."""
    folder = work_dir / '20260101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return work_dir


def epochs_of(top1, train_top1):
    lines = []
    for epoch, (test, (early, late)) in enumerate(zip(top1, train_top1, strict=True), 1):
        lines += [{'loss': 1., 'accuracy_top-1': value, 'epoch': epoch, 'step': 8 * epoch - offset}
                  for value, offset in ((early, 4), (late, 0))]
        lines.append({'accuracy/top1': test, 'step': epoch})
    return lines


def test_several_runs_in_one_picture(tmp_path, monkeypatch):
    """Figure 8: training and validation error of every run, training averaged over each epoch."""
    drawn = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, out, **_: drawn.append([
        (axes.get_ylabel(), axes.get_xlabel(), {line.get_label(): line.get_xydata().tolist() for line in axes.lines})
        for axes in figure.axes]))
    runs = [write_log(tmp_path / 'gn', epochs_of([60, 70], [(40, 50), (60, 70)])),
            write_log(tmp_path / 'bcn_ws', epochs_of([65, 75.5], [(50, 60), (70, 80)]))]
    plot_runs(runs, tmp_path / 'runs.png')
    assert drawn == [[
        ('Training error (%)', 'Epoch', {'gn': [[1, 55], [2, 35]], 'bcn_ws': [[1, 45], [2, 25]]}),
        ('Validation error (%)', 'Epoch', {'gn': [[1, 40], [2, 30]], 'bcn_ws': [[1, 35], [2, 24.5]]})]]

    segmentor = write_log(tmp_path / 'a' / 'seed0', [{'loss': 2., 'step': 10}, {'mIoU': 30., 'step': 10}])
    other = write_log(tmp_path / 'b' / 'seed0', [{'loss': 1., 'step': 10}, {'mIoU': 40., 'step': 10}])
    plot_runs([segmentor, other], tmp_path / 'runs.png')
    assert drawn[1][1] == ('mIoU (%)', 'Iteration', {str(segmentor): [[10, 30]], str(other): [[10, 40]]})
    with pytest.raises(ValueError, match='no number of validation that all of them have'):
        plot_runs([runs[0], segmentor], tmp_path / 'runs.png')


def test_curves_start_at_zero_with_room_at_the_top(tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, out, **_: limits.extend(a.get_ylim() for a in figure.axes))
    lines = [{'loss': .50, 'lr': .1, 'step': 1}, {'loss': .49, 'lr': .1, 'step': 2}, {'mIoU': 40., 'step': 2}]
    plot_curves(write_log(tmp_path, lines), tmp_path / 'curves.png')
    for (bottom, top), highest in zip(limits, (.5, .1, 40), strict=True):
        assert bottom == 0
        assert 1.02 * highest < top < 1.2 * highest


def test_runs_are_drawn_by_command(tmp_path, monkeypatch, capsys):
    runs = [write_log(tmp_path / name, epochs_of([60, 70], [(40, 50), (60, 70)])) for name in ('gn', 'gn_ws')]

    def run(*arguments):
        monkeypatch.setattr('sys.argv', ['plot_run.py', *map(str, arguments)])
        runpy.run_path(str(ROOT / 'tools' / 'plot_run.py'), run_name='__main__')

    run(*runs)
    assert Image.open(tmp_path / 'runs.png').width > 500
    run(runs[0], '--out', tmp_path / 'one.png')
    assert Image.open(tmp_path / 'one.png').width > 500
    with pytest.raises(SystemExit):
        run(*runs, '--predictions', tmp_path)
    assert 'needs a single run' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(runs[0], '--count', 0)
    assert 'argument --count: 0 is not a whole number of at least 1' in capsys.readouterr().err
