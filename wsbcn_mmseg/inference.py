"""Use a trained segmentor on images of one's own, whatever files they come in."""
import copy
import glob
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, init_default_scope
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from PIL import Image, ImageDraw, ImageFont, ImageOps
from rich.progress import Progress
from torch import nn

from wsbcn_mmseg.datasets.voc_aug import save_label, voc_palette
from wsbcn_mmseg.engine.checkpoint import read_checkpoint, read_weights
from wsbcn_mmseg.engine.launch import UsageError, check_checkpoint, load_config, num_classes

MODES = ('whole', 'slide')
FORMATS = ('BMP', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')  # of pixels; no other is opened
SUFFIXES = {'.bmp', '.dib', '.gif', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg', '.mpo', '.pbm', '.pgm', '.png', '.pnm',
            '.ppm', '.tif', '.tiff', '.webp'}  # what is taken from folders
KINDS = ('labels', 'masks', 'overlays')  # of the files, each in a folder of that name


# From a checkpoint to a network

def load_segmentor(config: str | Path | Config, checkpoint: str | Path, device: str = 'cpu',
                   options: dict | None = None) -> nn.Module:
    """A trained segmentor, ready to predict.

    Like MMSegmentation's ``init_model``, and further: reads the checkpoint with ``weights_only=True`` and refuses one
    that does not fill the network.

    Args:
        config: Config file, or a config.
        checkpoint: The file that a training run saved.
        device: As PyTorch names it. Defaults to the CPU.
        options: Settings that replace those of the config. Defaults to None.

    Returns:
        The network in evaluation mode, with its config as ``cfg`` and ``dict(classes=..., palette=...)`` as
        ``dataset_meta``.

    Raises:
        UsageError: If a file is missing or unreadable, or the two do not belong together; one sentence.
    """
    cfg = copy.deepcopy(config) if isinstance(config, Config) else load_config(str(config), options, None, 'none')
    if not cfg.get('model'):
        raise UsageError(f'{config} describes no model')
    if '://' in str(checkpoint):
        raise UsageError(f'{checkpoint} is not on this machine; download it first')
    check_checkpoint(str(checkpoint), num_classes(cfg))
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    description = copy.deepcopy(cfg.model)
    for part in (description, description.get('backbone') or {}):
        part.pop('init_cfg', None)  # the checkpoint has it all
    try:
        model = MODELS.build(description)
    except KeyError as error:  # a type that nobody registered
        raise UsageError(f'{config}: {str(error).strip(chr(34)).splitlines()[0]}') from error
    try:
        problems = model.load_state_dict(read_weights(checkpoint), strict=False)
    except RuntimeError as error:  # shapes differ; the first line says no more than that
        raise UsageError(f'{checkpoint} was trained with another network: '
                         f'{str(error).splitlines()[1].strip()}') from error
    missing = [name for name in problems.missing_keys if not name.endswith('num_batches_tracked')]
    if missing or problems.unexpected_keys:
        raise UsageError(f'{checkpoint} was trained with another network: {len(missing)} tensors missing, '
                         f'{len(problems.unexpected_keys)} unexpected, such as '
                         f'{(missing or problems.unexpected_keys)[0]}')
    model.cfg, model.dataset_meta = cfg, _dataset_meta(cfg, checkpoint)
    model.to(_device(device))
    model.eval()
    return model


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a PyTorch without CUDA
        raise UsageError(f'there is no device {name!r} here; choose another, such as cpu') from error
    return device


def _dataset_meta(cfg: Config, checkpoint: str | Path) -> dict:
    """Names and colours of the classes: from the checkpoint, the config's data set, or numbers and VOC's colours."""
    dataset = _test_set(cfg)
    with DATASETS.switch_scope_and_registry(None) as registry:
        dataset_type = registry.get(dataset['type']) if 'type' in dataset else None
    known = dict(getattr(dataset_type, 'METAINFO', {})) | dict(dataset.get('metainfo') or {})
    meta = read_checkpoint(checkpoint).get('meta')
    meta = meta.get('dataset_meta') if isinstance(meta, dict) else None
    known |= {key: value for key, value in (meta if isinstance(meta, dict) else {}).items() if value}
    count = max(num_classes(cfg) or 2, 2)
    if len(known.get('classes') or range(count)) != count:
        raise UsageError(f"the model has {count} classes, but {checkpoint} or the config names "
                         f"{len(known['classes'])}")
    classes = known.get('classes') or [str(index) for index in range(count)]
    palette = known.get('palette') or np.reshape(voc_palette(), (-1, 3))[:len(classes)].tolist()
    return dict(classes=list(classes), palette=[list(map(int, colour)) for colour in palette])


# From files to images

def read_image(path: str | Path) -> np.ndarray:
    """An image file as RGB, uint8 of shape (H, W, 3).

    Turned upright as EXIF says; grey becomes RGB; transparent parts become white; 16-bit values are divided by 257; of
    animations the first frame counts.

    Raises:
        ValueError: If the file is missing, damaged or no image of these kinds; one sentence, without the path.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                return np.array(_rgb(ImageOps.exif_transpose(image)))
    except FileNotFoundError as error:
        raise ValueError('does not exist') from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f'has more than {Image.MAX_IMAGE_PIXELS:,} pixels') from error
    except Image.UnidentifiedImageError as error:
        raise ValueError('is no image, or of a format unknown here') from error
    except ValueError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise ValueError(f'cannot be decoded ({error or type(error).__name__})') from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ('I', 'I;16', 'I;16B', 'I;16L', 'I;16N'):
        values = np.asarray(image).astype(np.int64)
        if not 0 <= values.min() <= values.max() < 2**16:
            raise ValueError(f'has values from {values.min()} to {values.max()}, beyond 16 bits')
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    if image.mode == 'F':
        raise ValueError('has floating-point values, whose black and white nobody knows')
    if 'A' in image.mode or 'a' in image.mode or 'transparency' in image.info:
        image = image.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')
    return image.convert('RGB')


def find_images(patterns: Iterable[str | Path]) -> list[Path]:
    """The files that are meant: files themselves, all images in and below folders, matches of globs; each once.

    Raises:
        UsageError: If a folder or a glob holds no image.
    """
    found = []
    for pattern in map(str, patterns):
        if Path(pattern).is_dir():
            files = sorted(path for path in Path(pattern).rglob('*') if path.suffix.lower() in SUFFIXES
                           and path.is_file())
        elif not Path(pattern).exists() and glob.has_magic(pattern):
            files = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())
        else:
            files = [Path(pattern)]  # missing or damaged, it will get its sentence
        if not files:
            raise UsageError(f'{pattern} holds no images')
        found += files
    return list(dict.fromkeys(found))


# From images to labels

@dataclass
class Prediction:
    """What became of an image.

    Attributes:
        source: The path of its file, or 'image N' of an array.
        labels: Class of every pixel, uint8 of shape (H, W) of the upright image; None where there is a problem, and
            where it was written to files.
        files: Paths of what was written, by kind: 'labels', 'masks', 'overlays'.
        problem: Why there is no result, one sentence; None if there is one.
    """
    source: str
    labels: np.ndarray | None = None
    files: dict[str, Path] = field(default_factory=dict)
    problem: str | None = None


def infer(model: nn.Module, images: Sequence | str | Path | np.ndarray, out: str | Path | None = None, *,
          tta: bool = False, mode: str | None = None, batch: int = 1, opacity: float = 0.5,
          progress: bool = True) -> list[Prediction]:
    """Segment images; no file, whatever is wrong with it, stops the others.

    Args:
        model: From :func:`load_segmentor`; a folded one (:func:`wsbcn_mmseg.fold`) works too.
        images: Files, folders, globs, and arrays in RGB, uint8 of shape (H, W, 3); one or a sequence.
        out: Folder for ``labels/NAME.png`` (palette of VOC), ``masks/NAME.png`` (colours, with a legend) and
            ``overlays/NAME.png``; None writes nothing and returns the labels. Defaults to None.
        tta: Average over several scales and mirroring, as the config's ``tta_pipeline`` says. Defaults to False.
        mode: 'whole' images at a time, or 'slide': a window over each; the config's ``test_cfg`` or ``crop_size`` says
            of what size. Defaults to None: what the config says.
        batch: Images that run together, where they are of one size. Defaults to 1.
        opacity: Of the colours in overlays, 0 to 1. Defaults to 0.5.
        progress: Show a progress bar. Defaults to True.

    Returns:
        One prediction per image, in their order.

    Raises:
        UsageError: If the arguments cannot be met; one sentence.
    """
    if isinstance(images, (str, Path, np.ndarray)):
        images = [images]
    if len(model.dataset_meta['classes']) > 256:
        raise UsageError('label files hold up to 256 classes, the model has more')
    if batch < 1 or not 0 <= opacity <= 1:
        raise UsageError(f'expected batch of at least 1 and opacity from 0 to 1, got {batch} and {opacity}')
    odd = next((image for image in images if not isinstance(image, (str, Path, np.ndarray))), None)
    if odd is not None:
        raise UsageError(f'expected paths and arrays, got a {type(odd).__name__}')
    sources = [source for image in images
               for source in ([image] if isinstance(image, np.ndarray) else find_images([image]))]
    network, pipeline = _network(model, tta), Compose(preprocess_steps(model.cfg, tta))
    names = _names(sources)
    predictions = [Prediction(name if isinstance(source, np.ndarray) else str(source))
                   for name, source in zip(names, sources, strict=True)]
    if out is not None:
        for kind in KINDS:
            Path(out, kind).mkdir(parents=True, exist_ok=True)

    with _test_mode(model, mode), Progress(disable=not progress) as bar:
        task = bar.add_task('Segmenting', total=len(sources))
        for group in _groups(sources, predictions, pipeline, batch):
            for index, image, labels in _predict(network, group, predictions):
                prediction = predictions[index]
                if out is None:
                    prediction.labels = labels
                else:
                    try:
                        prediction.files = _write(Path(out), names[index], image, labels, model.dataset_meta, opacity)
                    except OSError as error:
                        prediction.problem = f'the results of {prediction.source} cannot be written ({error})'
            bar.update(task, completed=sum(bool(p.problem or p.files or p.labels is not None) for p in predictions))
        bar.update(task, completed=len(sources))
    return predictions


def _network(model: nn.Module, tta: bool) -> nn.Module:
    if not tta:
        return model
    if 'tta_pipeline' not in model.cfg or 'tta_model' not in model.cfg:
        raise UsageError('the config has no tta_pipeline and tta_model; configs/_base_/voc_aug.py shows them')
    return MODELS.build(dict(**model.cfg.tta_model, module=model)).eval()


def preprocess_steps(cfg: Config, tta: bool = False) -> list[dict]:
    """The config's test pipeline, for an image that is read already and has no labels.

    Raises:
        UsageError: If the config has none.
    """
    pipeline = cfg.get('tta_pipeline') if tta else _test_set(cfg).get('pipeline') or cfg.get('test_pipeline')
    if not pipeline or pipeline[0]['type'] != 'LoadImageFromFile':
        raise UsageError('the config has no test pipeline that begins with LoadImageFromFile')
    first, *steps = copy.deepcopy(list(pipeline))
    for step in steps:
        if 'transforms' in step:
            step.transforms = [kept for branch in step.transforms if (kept := _without_labels(branch))]
    return [dict(type='LoadImageFromNDArray', to_float32=first.get('to_float32', False)), *_without_labels(steps)]


def _test_set(cfg: Config) -> dict:
    return (cfg.get('test_dataloader') or {}).get('dataset') or {}


def images_of_test_set(cfg: Config) -> list[Path]:
    """The image files of the config's test set that are there."""
    dataset = _test_set(cfg)
    folder = Path(dataset.get('data_root') or '.', (dataset.get('data_prefix') or {}).get('img_path') or 'nowhere')
    listed = Path(dataset.get('data_root') or '.', dataset.get('ann_file') or 'nowhere')
    if not folder.is_dir():
        return []
    names = set(listed.read_text().split()) if listed.is_file() else None
    return [path for path in sorted(folder.iterdir()) if names is None or path.stem in names]


def _without_labels(steps: list) -> list:
    return [step for step in steps if step.get('type') != 'LoadAnnotations']


class _test_mode:
    """Within, the model infers whole images or by a sliding window."""

    def __init__(self, model: nn.Module, mode: str | None):
        if mode not in (None, *MODES):
            raise UsageError(f'mode must be one of {", ".join(MODES)}, got {mode}')
        self.model, self.before = model, model.test_cfg
        self.test_cfg = ConfigDict(self.before or {}, mode=mode or (self.before or {}).get('mode', 'whole'))
        if self.test_cfg.mode == 'slide' and 'crop_size' not in self.test_cfg:
            crop = model.cfg.get('crop_size') or (512, 512)
            crop = (crop, crop) if isinstance(crop, int) else tuple(crop)
            self.test_cfg.update(crop_size=crop, stride=tuple(max(1, side * 2 // 3) for side in crop))

    def __enter__(self):
        self.model.test_cfg = self.test_cfg

    def __exit__(self, *_):
        self.model.test_cfg = self.before


_Item = tuple[int, np.ndarray, dict]  # which image, its pixels, what the pipeline made of it


def _groups(sources: list, predictions: list[Prediction], pipeline: Compose, batch: int) -> Iterator[list[_Item]]:
    """Up to ``batch`` images of one size at a time; few wait for others of theirs."""
    waiting: dict[tuple, list[_Item]] = {}
    for index, source in enumerate(sources):
        try:
            image = _checked(source) if isinstance(source, np.ndarray) else read_image(source)
        except ValueError as error:
            predictions[index].problem = f'{predictions[index].source} {error}'
            continue
        try:
            data = pipeline(dict(img=np.ascontiguousarray(image[..., ::-1])))  # OpenMMLab reads files as BGR
        except Exception as error:  # transforms raise nearly anything on sizes that they were not made for
            predictions[index].problem = _failure(predictions[index], error)
            continue
        inputs = data['inputs'] if isinstance(data['inputs'], list) else [data['inputs']]
        shapes = image.shape, *(tuple(part.shape) for part in inputs)
        waiting.setdefault(shapes, []).append((index, image, data))
        if len(waiting[shapes]) == batch:
            yield waiting.pop(shapes)
        elif sum(map(len, waiting.values())) >= 4 * batch:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def _checked(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f'is not uint8 of shape (H, W, 3) but {image.dtype} of shape {image.shape}')
    return image


def _predict(network: nn.Module, group: list[_Item], predictions: list[Prediction]) -> Iterator:
    """Index, pixels and labels of each image of a group; one by one where the group fails."""
    try:
        with torch.no_grad():
            samples = network.test_step(_collate([data for _, _, data in group]))
    except Exception as error:
        if len(group) == 1:
            prediction = predictions[group[0][0]]
            prediction.problem = _failure(prediction, error)
            return
        for item in group:
            yield from _predict(network, [item], predictions)
        return
    for (index, image, _), sample in zip(group, samples, strict=True):
        yield index, image, _labels(sample)


def _failure(prediction: Prediction, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f'{prediction.source} cannot be segmented ({reason})'


def _collate(items: list[dict]) -> dict:
    """As MMEngine's ``pseudo_collate``: lists over the images, inside lists over the augmentations of each."""
    batch = {key: [item[key] for item in items] for key in ('inputs', 'data_samples')}
    if isinstance(batch['inputs'][0], list):
        batch = {key: [list(part) for part in zip(*values, strict=True)] for key, values in batch.items()}
    return batch


def _labels(sample: SegDataSample) -> np.ndarray:
    labels = sample.pred_sem_seg.data.cpu().numpy()
    return labels.reshape(labels.shape[-2:]).astype(np.uint8)


# From labels to files

def _names(sources: list) -> list[str]:
    """A file name for each, no two the same."""
    names, taken = [], set()
    for number, source in enumerate(sources, 1):
        stem = f'image_{number}' if isinstance(source, np.ndarray) else source.stem
        name = next(name for name in (stem, *(f'{stem}_{i}' for i in range(2, len(sources) + 2))) if name not in taken)
        taken.add(name)
        names.append(name)
    return names


def _write(out: Path, name: str, image: np.ndarray, labels: np.ndarray, meta: dict,
           opacity: float) -> dict[str, Path]:
    colours = np.array(meta['palette'], np.uint8)[np.minimum(labels, len(meta['palette']) - 1)]
    paths = {kind: out / kind / f'{name}.png' for kind in KINDS}
    save_label(paths['labels'], labels)
    with_legend(colours, labels, meta).save(paths['masks'])
    Image.fromarray(((1 - opacity) * image + opacity * colours).round().astype(np.uint8)).save(paths['overlays'])
    return paths


def with_legend(colours: np.ndarray, labels: np.ndarray, meta: dict) -> Image.Image:
    """A colour mask, and beside it the names of the classes in it with their share of the pixels.

    Args:
        colours: uint8 of shape (H, W, 3).
        labels: Class of every pixel, shape (H, W).
        meta: ``dict(classes=..., palette=...)``.
    """
    counts = np.bincount(labels.ravel(), minlength=len(meta['classes']))
    entries = [(tuple(colour), f'{name}  {count / labels.size:.1%}')
               for colour, name, count in zip(meta['palette'], meta['classes'], counts, strict=False) if count]
    font, line = ImageFont.load_default(14), 22
    width = 40 + max(int(font.getlength(text)) for _, text in entries)
    height, mask_width = labels.shape
    picture = Image.new('RGB', (mask_width + width, max(height, line * len(entries) + 8)), 'white')
    picture.paste(Image.fromarray(colours))
    draw = ImageDraw.Draw(picture)
    for row, (colour, text) in enumerate(entries):
        top = 4 + row * line
        draw.rectangle((mask_width + 8, top + 2, mask_width + 24, top + 18), fill=colour, outline='black')
        draw.text((mask_width + 30, top + 2), text, fill='black', font=font)
    return picture
