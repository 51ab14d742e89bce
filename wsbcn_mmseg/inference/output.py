"""Write predictions to files."""
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wsbcn_mmseg.datasets.voc_aug import save_label

KINDS = ('labels', 'masks', 'overlays')  # of the files, each in a folder of that name


def unique_names(sources: list) -> list[str]:
    """A unique file name for each prediction."""
    names, taken = [], set()
    for number, source in enumerate(sources, 1):
        stem = f'image_{number}' if isinstance(source, np.ndarray) else source.stem
        name = next(name for name in (stem, *(f'{stem}_{i}' for i in range(2, len(sources) + 2))) if name not in taken)
        taken.add(name)
        names.append(name)
    return names


def write_prediction(out: Path, name: str, image: np.ndarray, labels: np.ndarray, meta: dict,
           opacity: float) -> dict[str, Path]:
    colors = np.array(meta['palette'], np.uint8)[np.minimum(labels, len(meta['palette']) - 1)]
    paths = {kind: out / kind / f'{name}.png' for kind in KINDS}
    save_label(paths['labels'], labels)
    with_legend(colors, labels, meta).save(paths['masks'])
    Image.fromarray(((1 - opacity) * image + opacity * colors).round().astype(np.uint8)).save(paths['overlays'])
    return paths


def with_legend(colors: np.ndarray, labels: np.ndarray, meta: dict) -> Image.Image:
    """A color mask with a legend on its right, which lists the classes in it with their share of the pixels.

    Args:
        colors: uint8 of shape (H, W, 3).
        labels: Class of every pixel, shape (H, W).
        meta: ``dict(classes=..., palette=...)``.
    """
    counts = np.bincount(labels.ravel(), minlength=len(meta['classes']))
    entries = [(tuple(color), f'{name}  {count / labels.size:.1%}')
               for color, name, count in zip(meta['palette'], meta['classes'], counts, strict=False) if count]
    font, line = ImageFont.load_default(14), 22
    width = 40 + max(int(font.getlength(text)) for _, text in entries)
    height, mask_width = labels.shape
    picture = Image.new('RGB', (mask_width + width, max(height, line * len(entries) + 8)), 'white')
    picture.paste(Image.fromarray(colors))
    draw = ImageDraw.Draw(picture)
    for row, (color, text) in enumerate(entries):
        top = 4 + row * line
        draw.rectangle((mask_width + 8, top + 2, mask_width + 24, top + 18), fill=color, outline='black')
        draw.text((mask_width + 30, top + 2), text, fill='black', font=font)
    return picture
