"""The augmented VOC 2012 training set: VOC train, plus SBD train and val, minus VOC val.

SBD is the Semantic Boundaries Dataset (Hariharan et al., "Semantic Contours from Inverse Detectors", ICCV 2011). It
also labels VOC images that VOC itself does not label. With both complete releases the set has 10,582 images: 1,464 have
VOC's labels, with void (255) borders around objects, and 9,118 have SBD's labels, without borders.
"""
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image
from rich.progress import track
from scipy.io import loadmat

Read = TypeVar('Read')
NUM_CLASSES = 21
VOID = 255

_VOC_PAGE = 'http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (VOCtrainval_11-May-2012.tar)'
_SBD_PAGE = 'http://home.bharathh.info/pubs/codes/SBD/download.html (benchmark.tgz, Hariharan et al.)'
_AUG_SOURCE = 'a fresh copy of the SegmentationClassAug folder, or pass --sbd to make it from SBD'


class VOCAugError(Exception):
    """The augmented set cannot be made; the message gives the reason and the next step."""


class Job(NamedTuple):
    """One image to verify; ``output`` is the file to write its label map to, or None to only verify it."""

    image: Path
    label: Path
    output: Path | None


class Report(NamedTuple):
    """The result of a job: ``problems`` are (path, reason) pairs; ``written`` is False if the output existed."""

    problems: list[tuple[Path, str]]
    written: bool


class Plan(NamedTuple):
    """What to do: verify and write ``train`` jobs, verify ``val`` jobs, list ``names`` in ``list_file``."""

    train: list[Job]
    val: list[Job]
    names: list[str]
    num_voc: int
    list_file: Path


def voc_palette() -> list[int]:
    """VOC's color map as 768 integers for ``PIL.Image.putpalette``; the bits of a label are spread over R, G, B."""
    labels = np.arange(256)
    palette = np.zeros((256, 3), dtype=int)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (labels >> (3 * bit + channel) & 1) << (7 - bit)
    return palette.ravel().tolist()


def save_label(path: Path, label: np.ndarray) -> None:
    """Write a label map, uint8 of shape (H, W), as palette PNG; ``path`` never holds a half-written file."""
    image = Image.fromarray(label)
    image.putpalette(voc_palette())
    temporary = path.with_suffix('.tmp')
    image.save(temporary, format='PNG')
    os.replace(temporary, path)


def load_label(path: Path) -> np.ndarray:
    """Read a label map, uint8 of shape (H, W), from a palette or grayscale PNG or from an SBD ``.mat`` file.

    Raises:
        ValueError: If the file can be decoded but is not a label map: wrong type, values other than 0-20 (and 255 in a
            PNG), or no labeled pixel.
        Exception: Any error of the decoder for a missing or corrupt file.
    """
    if path.suffix == '.mat':
        with path.open('rb') as file:  # given a name, loadmat hides that the file is missing
            label = loadmat(file, variable_names=['GTcls'])['GTcls'][0]['Segmentation'][0]
        valid = label < NUM_CLASSES
    else:
        with Image.open(path) as image:
            if image.mode not in ('P', 'L'):
                raise ValueError(f'neither a palette nor a grayscale image (mode {image.mode})')
            label = np.array(image)
        valid = (label < NUM_CLASSES) | (label == VOID)
    if label.dtype != np.uint8 or label.ndim != 2:
        raise ValueError(f'expected uint8 labels of shape (H, W), got {label.dtype} of shape {label.shape}')
    if not valid.all():
        raise ValueError(f'label values {np.unique(label[~valid])[:5].tolist()} are not allowed')
    if (label == VOID).all():
        raise ValueError('no labeled pixel')
    return label


def plan_voc_aug(voc_root: str | Path, sbd_root: str | Path | None = None, aug_root: str | Path | None = None,
                 expected: int = 10582) -> Plan:
    """Read the lists, and plan which label maps to make from which files.

    Args:
        voc_root: The VOC2012 folder; holds JPEGImages, SegmentationClass and ImageSets.
        sbd_root: SBD's benchmark_RELEASE folder, or the dataset folder in it.
        aug_root: A ready SegmentationClassAug folder of PNGs, used if ``sbd_root`` is not given.
        expected: Required number of training images. Defaults to 10,582.

    Returns:
        The plan, with names in sorted order. VOC's own labels are preferred where they exist.

    Raises:
        VOCAugError: If a folder does not have the expected files, or the number of images is not the expected one.
    """
    voc_root = Path(voc_root)
    lists = voc_root / 'ImageSets' / 'Segmentation'
    _require(voc_root, ['JPEGImages', 'SegmentationClass', *(f'ImageSets/Segmentation/{split}.txt'
                                                             for split in ('train', 'val'))],
             'the VOC2012 folder', _VOC_PAGE)
    voc_train, val = _read_names(lists / 'train.txt'), _read_names(lists / 'val.txt')
    extra, extra_label = _sbd_labels(Path(sbd_root)) if sbd_root else _aug_labels(Path(aug_root))

    names = sorted((voc_train | extra) - val)
    if len(names) != expected:
        raise VOCAugError(
            f'The augmented set would have {len(names)} images instead of {expected} ({len(voc_train)} in VOC train, '
            f'{len(extra)} in {"SBD" if sbd_root else "the folder given with --aug"}, {len(val)} in VOC val to leave '
            f'out); complete the data, or pass --expected {len(names)} if it is complete.')

    def job(name: str, label: Path, output: Path | None = None) -> Job:
        return Job(voc_root / 'JPEGImages' / f'{name}.jpg', label, output)

    def voc_label(name: str) -> Path:
        return voc_root / 'SegmentationClass' / f'{name}.png'

    output = voc_root / 'SegmentationClassAug'
    return Plan(
        train=[job(name, voc_label(name) if name in voc_train else extra_label(name), output / f'{name}.png')
               for name in names],
        val=[job(name, voc_label(name)) for name in sorted(val)],
        names=names,
        num_voc=len(voc_train - val),
        list_file=lists / 'trainaug.txt')


def prepare_voc_aug(plan: Plan, workers: int = 1) -> int:
    """Verify every image and label map of ``plan``, write the training label maps and, if all is well, the list.

    Existing correct label maps are kept, so an interrupted run continues where it stopped.

    Args:
        plan: Result of :func:`plan_voc_aug`.
        workers: Number of processes. Defaults to 1, which starts no other process.

    Returns:
        Number of label maps written; the others were already correct.

    Raises:
        VOCAugError: If files are missing or corrupt: the message has the first 20, their number, and where to get them.
    """
    if plan.train:
        plan.train[0].output.parent.mkdir(exist_ok=True)
    jobs = plan.train + plan.val
    reports = list(track(_run(jobs, workers), description='Verifying and writing', total=len(jobs)))
    problems = [problem for report in reports for problem in report.problems]
    if problems:
        raise VOCAugError(_describe(problems))
    temporary = plan.list_file.with_suffix('.tmp')
    temporary.write_text(''.join(f'{name}\n' for name in plan.names))
    os.replace(temporary, plan.list_file)
    return sum(report.written for report in reports)


def _require(root: Path, entries: list[str], meaning: str, source: str) -> None:
    missing = [str(root / entry) for entry in entries if not (root / entry).exists()]
    if missing:
        raise VOCAugError(f'{root} is not {meaning} ({missing[0]} is missing); get it from {source}.')


def _read_names(path: Path) -> set[str]:
    return set(path.read_text().split())


def _sbd_labels(root: Path) -> tuple[set[str], Callable[[str], Path]]:
    if (root / 'dataset').is_dir():
        root = root / 'dataset'
    _require(root, ['cls', 'train.txt', 'val.txt'], "SBD's benchmark_RELEASE folder", _SBD_PAGE)
    names = _read_names(root / 'train.txt') | _read_names(root / 'val.txt')
    return names, lambda name: root / 'cls' / f'{name}.mat'


def _aug_labels(root: Path) -> tuple[set[str], Callable[[str], Path]]:
    names = {path.stem for path in root.glob('*.png')}
    if not names:
        raise VOCAugError(f'{root} holds no PNG files; pass the folder that holds SegmentationClassAug/*.png.')
    return names, lambda name: root / f'{name}.png'


def _run(jobs: list[Job], workers: int) -> Iterator[Report]:
    if workers == 1:
        yield from map(_process, jobs)
        return
    # Workers ignore Ctrl-C; the parent cancels jobs that have not started.
    with ProcessPoolExecutor(workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            yield from pool.map(_process, jobs, chunksize=16)
        finally:
            pool.shutdown(cancel_futures=True)


def _process(job: Job) -> Report:
    problems = []
    size = _attempt(_decoded_size, job.image, problems)
    label = _attempt(load_label, job.label, problems)
    if not problems and label.shape != size:
        problems.append((job.label, f'is {label.shape[1]}x{label.shape[0]}, its image {size[1]}x{size[0]} pixels'))
    written = not problems and job.output is not None and not _holds(job.output, label)
    if written:
        save_label(job.output, label)
    return Report(problems, written)


def _attempt(read: Callable[[Path], Read], path: Path, problems: list[tuple[Path, str]]) -> Read | None:
    # Decoders may raise any error on corrupt files (OSError, SyntaxError, zlib.error, KeyError, ...).
    try:
        return read(path)
    except FileNotFoundError:
        problems.append((path, 'is missing'))
    except Exception as error:
        problems.append((path, f'is corrupt or wrong: {error}'))


def _decoded_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()  # open() reads the header only
        return image.height, image.width


def _holds(path: Path, label: np.ndarray) -> bool:
    try:
        with Image.open(path) as image:
            return image.mode == 'P' and np.array_equal(np.array(image), label)
    except Exception:  # missing or corrupt: will be written
        return False


def _describe(problems: list[tuple[Path, str]]) -> str:
    paths = [path for path, _ in problems]
    sources = {
        _VOC_PAGE: any(path.parent.name in ('JPEGImages', 'SegmentationClass') for path in paths),
        _SBD_PAGE: any(path.suffix == '.mat' for path in paths),
        _AUG_SOURCE: any(path.suffix == '.png' and path.parent.name != 'SegmentationClass' for path in paths),
    }
    lines = [f'trainaug.txt was not written because of missing or corrupt files ({len(problems)}); get them from '
             f'{" and ".join(source for source, needed in sources.items() if needed)} and run this command again:']
    lines += [f'  {path} {reason}' for path, reason in problems[:20]]
    if len(problems) > 20:
        lines.append(f'  ... and {len(problems) - 20} more')
    return '\n'.join(lines)
