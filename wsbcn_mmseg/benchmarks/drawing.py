"""Bar charts with a baseline, for benchmarks of networks."""
from matplotlib.figure import Figure

from wsbcn_mmseg.plotting import COLORS

from .measuring import Row


def draw_bars(rows: list[Row], panels: dict[str, str]) -> Figure:
    """One row of panels per network and shape.

    Args:
        rows: Rows of one benchmark.
        panels: Keys of ratios in the rows, with the titles of their axes; keys without values are omitted.
    """
    panels = {key: title for key, title in panels.items() if rows[0][key]}
    runs = list(dict.fromkeys((row['network'], row['shape']) for row in rows))
    figure = Figure(figsize=(2 + 4.5 * len(panels), 0.8 + 3 * len(runs)), layout='constrained')
    grid = figure.subplots(len(runs), len(panels), squeeze=False, sharey='row')
    for line, (network, shape) in zip(grid, runs, strict=True):
        part = [row for row in rows if (row['network'], row['shape']) == (network, shape)][::-1]
        labels = [f'{row["layer"]}, {row["implementation"]}' for row in part]
        for axes, (key, title), color in zip(line, panels.items(), COLORS, strict=False):
            bars = axes.barh(labels, [row[key] for row in part], color=color)
            axes.bar_label(bars, fmt='{:.2f}', padding=3)
            axes.axvline(1, color='black', linewidth=1)
            axes.set(xlabel=title)
            axes.margins(x=0.15)
        line[0].set_title(f'{network}, {shape.replace("x", " × ")}', loc='left')
    return figure
