"""Read the logs of runs; write tables of measurements."""
import csv
import json
from pathlib import Path


def read_scalars(work_dir: str | Path) -> list[dict]:
    """The logged scalars of a run, one dictionary per line, oldest first; resumed runs are joined.

    Raises:
        FileNotFoundError: If the folder holds no log of a run.
    """
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not files:
        raise FileNotFoundError(f'{work_dir} holds no */vis_data/scalars.json of a training run')
    return [line for file in files for line in read_jsonl(file)]


def read_jsonl(path: str | Path) -> list[dict]:
    """The objects in a file of one JSON object per line. Incomplete lines of a killed run are skipped."""
    return [line for text in Path(path).read_text().splitlines() if (line := _parsed(text)) is not None]


def _parsed(text: str) -> dict | None:
    try:
        return json.loads(text)
    except ValueError:
        return None


def write_csv(rows: list[dict], out: str | Path) -> Path:
    """Write rows with equal keys as CSV, numbers with five digits; returns ``out``."""
    with Path(out).open('w', newline='') as file:
        writer = csv.DictWriter(file, rows[0], lineterminator='\n')
        writer.writeheader()
        writer.writerows({key: f'{value:.5g}' if isinstance(value, float) else value for key, value in row.items()}
                         for row in rows)
    return Path(out)


def markdown_table(rows: list[dict], columns: dict[str, str]) -> str:
    """Rows as a table in Markdown, with right-aligned numbers.

    Args:
        rows: Read from a CSV file or measured; None and missing keys give empty cells.
        columns: Keys of the rows and format specifications of their numbers; an empty one means text.
    """
    shown = {key: spec for key, spec in columns.items() if any(row.get(key) not in (None, '') for row in rows)}

    def cell(row: dict, key: str) -> str:
        value, spec = row.get(key), shown[key]
        if value in (None, ''):
            return ''
        number = int(value) if spec.endswith(('d', ',')) else float(value) if spec else value
        return format(number, spec)

    lines = [[key.replace('vs_', '/ ').replace('_', ' ') if '_' in key and not key.startswith(('sm_', 'gfx')) else key
              for key in shown], ['---:' if spec else '---' for spec in shown.values()],
             *([cell(row, key) for key in shown] for row in rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
