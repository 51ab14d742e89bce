"""A small synthetic stand-in for VOC 2012 and SBD, in the layouts of the real releases.

Each of the 20 object classes is a combination of one of ten colors, one of five shapes, and a texture or none, so that
color alone does not determine the class. Two to four objects are drawn on a noisy background. Use it to try the whole
pipeline in minutes; scores on it are not comparable with scores on VOC.
"""
import io
import json
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from rich.progress import track
from scipy.io import savemat
from scipy.sparse import csc_matrix

from .voc_aug import NUM_CLASSES, VOID, save_label

_MARKER = 'mini_voc.json'
_COLORS = np.array([[205, 45, 40], [235, 130, 30], [225, 210, 50], [60, 170, 60], [50, 190, 190], [45, 90, 210],
                     [135, 60, 180], [235, 130, 190], [30, 40, 115], [115, 65, 30]], np.float32)
_MIN_IMAGES = 7  # two to four objects per image: enough for every class once


def make_mini_voc(root: str | Path, num_train: int = 60, num_val: int = 42, num_sbd: int = 120,
                  seed: int = 0) -> dict[str, int]:
    """Make ``root/VOCdevkit/VOC2012`` and ``root/benchmark_RELEASE``; the same seed gives the same bytes.

    As in the real releases all SBD images are VOC images, and SBD also labels three out of four images of VOC train
    and of VOC val. SBD's label maps have no void borders.

    Args:
        root: Folder for both releases; an earlier result with the same settings in it is overwritten.
        num_train: Number of images in VOC train, at least 7. Defaults to 60.
        num_val: Number of images in VOC val, at least 7. Defaults to 42.
        num_sbd: Number of images that only SBD labels. Defaults to 120.
        seed: Random seed. Defaults to 0.

    Returns:
        Number of images in 'train', 'val', 'sbd' (all images that SBD labels) and 'trainaug' (the number that
        ``tools/prepare_voc_aug.py`` must find).

    Raises:
        ValueError: If a split is too small to hold every class.
        FileExistsError: If ``root`` holds a VOC or SBD release that was not made with these settings.
    """
    if min(num_train, num_val) < _MIN_IMAGES or num_sbd < 0:
        raise ValueError(f'train and val need at least {_MIN_IMAGES} images each so that every class occurs in both, '
                         f'got {num_train} and {num_val} (and {num_sbd} for SBD)')
    voc, sbd = Path(root) / 'VOCdevkit' / 'VOC2012', Path(root) / 'benchmark_RELEASE' / 'dataset'
    rng = np.random.default_rng(seed)
    splits = _split_names(rng, num_train, num_val, num_sbd)
    names = sorted(splits['train'] + splits['val'] + splits['sbd_only'])
    _claim(Path(root), dict(num_train=num_train, num_val=num_val, num_sbd=num_sbd, seed=seed), names)

    classes = {name: dealt for split in ('train', 'val', 'sbd_only')
               for name, dealt in zip(splits[split], _deal_classes(rng, len(splits[split])), strict=True)}
    for folder in (voc / 'JPEGImages', voc / 'SegmentationClass', voc / 'ImageSets' / 'Segmentation',
                   sbd / 'img', sbd / 'cls'):
        folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(track(names, description='Drawing')):
        image, label, border = _draw_scene(np.random.default_rng([seed, index]), classes[name])
        jpeg = voc / 'JPEGImages' / f'{name}.jpg'
        Image.fromarray(image).save(jpeg, quality=90)
        if name not in splits['sbd_only']:
            save_label(voc / 'SegmentationClass' / f'{name}.png', np.where(border, np.uint8(VOID), label))
        if name in splits['sbd']:
            shutil.copyfile(jpeg, sbd / 'img' / f'{name}.jpg')
            _save_sbd_label(sbd / 'cls' / f'{name}.mat', label)

    for split in ('train', 'val'):
        _write_list(voc / 'ImageSets' / 'Segmentation' / f'{split}.txt', splits[split])
    _write_list(voc / 'ImageSets' / 'Segmentation' / 'trainval.txt', splits['train'] + splits['val'])
    _write_list(sbd / 'train.txt', [name for i, name in enumerate(splits['sbd']) if i % 4])
    _write_list(sbd / 'val.txt', splits['sbd'][::4])
    return dict(train=num_train, val=num_val, sbd=len(splits['sbd']), trainaug=num_train + num_sbd)


def _claim(root: Path, settings: dict[str, int], names: list[str]) -> None:
    """Write a marker into ``root``, or raise an error if the folders there were not made with these settings."""
    marker = root / _MARKER
    content = json.dumps(dict(note='synthetic images made by tools/make_mini_voc.py', **settings)) + '\n'
    if (root / 'VOCdevkit').exists() or (root / 'benchmark_RELEASE').exists():
        images = {path.stem for path in root.glob('VOCdevkit/VOC2012/JPEGImages/*')}
        if not marker.exists() or marker.read_text() != content or not images <= set(names):
            raise FileExistsError(f'{root} already holds a VOC or SBD release that this command did not make with '
                                  f'these settings; choose another folder or delete that one')
    root.mkdir(parents=True, exist_ok=True)
    marker.write_text(content)


def _split_names(rng: np.random.Generator, num_train: int, num_val: int, num_sbd: int) -> dict[str, list[str]]:
    total = num_train + num_val + num_sbd
    names = [f'{2007 + i % 6}_{27 + 4 * i:06d}' for i in range(total)]
    shuffled = [names[i] for i in rng.permutation(total)]
    train, val, sbd_only = np.split(shuffled, [num_train, num_train + num_val])
    sbd = np.concatenate([train[:num_train * 3 // 4], val[:num_val * 3 // 4], sbd_only])
    return {key: sorted(value.tolist()) for key, value in
            dict(train=train, val=val, sbd_only=sbd_only, sbd=sbd).items()}


def _deal_classes(rng: np.random.Generator, num_images: int) -> list[np.ndarray]:
    """Object classes 1-20 for each image, drawn from shuffled lists so that all occur equally often."""
    counts = [2 + i % 3 for i in range(num_images)]
    num_decks = -(-sum(counts) // (NUM_CLASSES - 1))
    decks = rng.permuted(np.tile(np.arange(1, NUM_CLASSES), (num_decks, 1)), axis=1).ravel()
    return np.split(decks[:sum(counts)], np.cumsum(counts))[:-1]


def _write_list(path: Path, names: list[str]) -> None:
    path.write_text(''.join(f'{name}\n' for name in sorted(names)))


def _save_sbd_label(path: Path, label: np.ndarray) -> None:
    """Write ``GTcls`` as in SBD: boundaries per class as sparse matrices, labels (H, W) uint8, classes present."""
    present = np.unique(label[label > 0])
    boundaries = np.empty((NUM_CLASSES - 1, 1), object)
    boundaries.fill(csc_matrix(label.shape, dtype=np.uint8))
    for cls in present:
        mask = (label == cls).astype(np.uint8)
        boundaries[cls - 1, 0] = csc_matrix(mask - cv2.erode(mask, np.ones((3, 3), np.uint8)))
    content = dict(Boundaries=boundaries, Segmentation=label, CategoriesPresent=present[:, None])
    buffer = io.BytesIO()
    savemat(buffer, dict(GTcls=content), do_compression=True)
    # The first 116 bytes are free text; scipy writes the time there.
    path.write_bytes(b'MATLAB 5.0 MAT-file, synthetic mini SBD'.ljust(116) + buffer.getvalue()[116:])


def _draw_scene(rng: np.random.Generator, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image (H, W, 3) and its class map (H, W), both uint8, and a mask (H, W) of the borders around objects."""
    height, width = int(rng.integers(333, 501)), 500
    if rng.random() < 1 / 3:
        height, width = width, height
    image = _draw_background(rng, height, width)
    instances = np.zeros((height, width), np.uint8)
    for number, (cls, cell) in enumerate(zip(classes, _cells(len(classes), height, width), strict=True), start=1):
        _draw_object(rng, image, instances, number, cls, cell)
    image += rng.standard_normal(image.shape, np.float32) * rng.uniform(4, 12)
    label = np.concatenate([[0], classes]).astype(np.uint8)[instances]
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    border = cv2.dilate(instances, kernel) != cv2.erode(instances, kernel)
    return np.clip(image, 0, 255).astype(np.uint8), label, border


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    grid = rng.uniform(-1, 1, (height // cell + 2, width // cell + 2)).astype(np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def _draw_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Two muted colors, one above the other like sky and ground, mixed by noise of several scales."""
    top, bottom = (rng.uniform(50, 200, (2, 1)) + rng.uniform(-20, 20, (2, 3))).astype(np.float32)
    horizon = np.linspace(-2, 2, height, dtype=np.float32)[:, None] + rng.uniform(-1, 1)
    mix = horizon + sum(_smooth_noise(rng, height, width, cell) for cell in (120, 40, 12))
    weight = 1 / (1 + np.exp(-2 * mix))[..., None]
    grain = 15 * _smooth_noise(rng, height, width, 5)[..., None]
    return top + weight * (bottom - top) + grain


def _cells(count: int, height: int, width: int) -> list[tuple[int, int, int, int]]:
    """Boxes (y, x, height, width) that divide the image, one per object, so that no object hides another."""
    rows, cols = {2: (1, 2), 3: (1, 3), 4: (2, 2)}[count]
    if height > width:
        rows, cols = cols, rows
    size = height // rows, width // cols
    return [(r * size[0], c * size[1], *size) for r in range(rows) for c in range(cols)]


def _draw_object(rng: np.random.Generator, image: np.ndarray, instances: np.ndarray, number: int, cls: int,
                 cell: tuple[int, int, int, int]) -> None:
    """Draw an object at least 80 pixels wide into both maps, in place; it may extend slightly out of its cell."""
    y, x, height, width = cell
    radius = max(40.0, rng.uniform(0.35, 0.55) * min(height, width))
    center_y = y + height / 2 + rng.uniform(-1, 1) * max(0, height / 2 - radius)
    center_x = x + width / 2 + rng.uniform(-1, 1) * max(0, width / 2 - radius)
    reach = 1.3 * radius
    rows = slice(max(0, int(center_y - reach)), int(center_y + reach))
    columns = slice(max(0, int(center_x - reach)), int(center_x + reach))
    dy = (np.arange(image.shape[0], dtype=np.float32)[rows, None] - center_y) / radius
    dx = (np.arange(image.shape[1], dtype=np.float32)[None, columns] - center_x) / radius
    angle = rng.uniform(-0.25, 0.25)
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = cos * dx + sin * dy, cos * dy - sin * dx

    color, textured = divmod(cls - 1, 2)
    texture = 1 + color % 3 if textured else 0
    distance = _shape(u, v, (color + 2 * textured) % 5)
    alpha = np.clip((1 - distance) * radius + 0.5, 0, 1)[..., None]
    tone = 1 + 0.4 * _texture(u, v, texture, rng.uniform(0, 2 * math.pi)) + 0.12 * (u * rng.uniform(-1, 1) - v)
    shade = (_COLORS[color] + rng.uniform(-15, 15, 3)) * rng.uniform(0.8, 1.15)
    image[rows, columns] += alpha * (tone[..., None] * shade.astype(np.float32) - image[rows, columns])
    instances[rows, columns][alpha[..., 0] >= 0.5] = number


def _shape(u: np.ndarray, v: np.ndarray, kind: int) -> np.ndarray:
    """Distance from the center divided by the distance of the outline; u and v are in [-1, 1] inside."""
    au, av = abs(u), abs(v)
    if kind == 0:
        return np.hypot(u, v)  # disc
    if kind == 1:
        return np.maximum(au, av) / 0.85  # square
    if kind == 2:
        return (au + av) / 1.1  # diamond
    if kind == 3:
        return np.maximum(v / 0.75, (2 * au - v) / 0.95)  # triangle
    return np.maximum(np.maximum(au, av), np.minimum(au, av) + 0.55)  # cross


def _texture(u: np.ndarray, v: np.ndarray, kind: int, phase: float) -> np.ndarray:
    """Brightness pattern in [-1, 1] with about four periods across the object."""
    if kind == 0:
        return np.zeros_like(u)  # plain
    horizontal, vertical = np.sin(12 * v + phase), np.sin(12 * u + phase)
    pattern = {1: horizontal, 2: vertical, 3: horizontal * vertical * 2}[kind]  # stripes, bars, chequers
    return np.clip(3 * pattern, -1, 1)
