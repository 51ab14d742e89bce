"""Fold a trained segmentor, export it to a file for other programs, and compare the file with the original."""
import copy
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from mmengine.dataset import Compose
from mmseg.models.utils import resize
from torch import Tensor, nn
from torch.export import Dim

import wsbcn_mmseg
from wsbcn_mmseg.conversion import fold
from wsbcn_mmseg.inference import ImageReader, loading_step, preprocess_steps
from wsbcn_mmseg.runtime.errors import UsageError, first_line
from wsbcn_mmseg.runtime.samples import input_channels

RANDOM_SIZES = ((1, 96, 128), (2, 161, 97), (1, 129, 193))  # images, height, width
EXAMPLE = (2, 129, 97)  # shape of the traced input; with one image, exporters would make the batch size a constant
TOLERANCE = 1e-3  # relative to the largest logit


class Logits(nn.Module):
    """The exported network: from normalized images, shape (N, C, H, W), to logits, shape (N, classes, H, W)."""

    def __init__(self, segmentor: nn.Module):
        super().__init__()
        self.segmentor = segmentor

    def forward(self, image: Tensor) -> Tensor:
        return self.segmentor.encode_decode(image, [dict(img_shape=image.shape[2:])])

    def labels(self, logits: Tensor) -> Tensor:
        """The class of each pixel, by the segmentor's rule; shape (N, H, W)."""
        if logits.shape[1] > 1:
            return logits.argmax(1)
        return (logits[:, 0].sigmoid() > _threshold(self.segmentor)).long()


def _threshold(segmentor: nn.Module) -> float:
    """The probability above which a binary head predicts class 1."""
    head = segmentor.decode_head
    return (head[-1] if isinstance(head, nn.ModuleList) else head).threshold


# Formats: each writes a file, reads it back, and returns it as a function

NetworkFunction = Callable[[Tensor], Tensor]


def _torchscript(network: Logits, example: Tensor, path: Path) -> NetworkFunction:
    torch.jit.trace(network, (example, ), check_trace=False).save(str(path))
    return torch.jit.load(str(path))


def _exported_program(network: Logits, example: Tensor, path: Path) -> NetworkFunction:
    program = torch.export.export(network, (example, ), dynamic_shapes=dict(image=_dynamic()))
    torch.export.save(program, path)
    return torch.export.load(path).module()


def _onnx(network: Logits, example: Tensor, path: Path) -> NetworkFunction:
    torch.onnx.export(network, (example, ), str(path), input_names=['image'], output_names=['logits'],
                      dynamic_shapes=dict(image=_dynamic()), dynamo=True, external_data=False, verbose=False)
    return onnx_runner(path)


def _state_dict(network: Logits, example: Tensor, path: Path) -> NetworkFunction:
    torch.save(network.segmentor.state_dict(), path)
    again = copy.deepcopy(network)
    for parameter in again.parameters():
        nn.init.zeros_(parameter)
    again.segmentor.load_state_dict(torch.load(path, weights_only=True))
    return again


def _dynamic() -> dict[int, Dim]:
    return {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}


def onnx_runner(path: str | Path, threads: int = 0) -> NetworkFunction:
    """An ONNX file as a function of a CPU tensor, run by ONNX Runtime; with ``threads=0`` it chooses the number."""
    import onnxruntime  # optional
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda image: torch.from_numpy(session.run(None, {name: image.numpy()})[0])


class Format(NamedTuple):
    """How to write and read a format, and the packages that this needs in addition to torch."""
    write: Callable[[Logits, Tensor, Path], NetworkFunction]
    needs: tuple[str, ...] = ()


FORMATS = {'torchscript': Format(_torchscript), 'onnx': Format(_onnx, ('onnx', 'onnxscript', 'onnxruntime')),
           'exported_program': Format(_exported_program), 'state_dict': Format(_state_dict)}


class Check(NamedTuple):
    """Comparison of the exported network with the original on images of one kind.

    Attributes:
        kind: 'random' or 'real'.
        images: Number of images.
        difference: Largest difference between logits.
        relative: Largest difference as a share of the largest logit of the image.
        pixels: Share of the pixels with another class.
    """
    kind: str
    images: int
    difference: float
    relative: float
    pixels: float


def export(model: nn.Module, out: str | Path, form: str, images: Iterable[str | Path],
           tolerance: float = TOLERANCE) -> list[Check]:
    """Fold a segmentor, write it to ``out``, and describe its input and output in ``out.json``.

    The exported network takes any number of normalized images of any size and returns logits of the same size. The file
    is read back and compared with the original network. If they do not agree, no file is left.

    Args:
        model: Result of :func:`~wsbcn_mmseg.load_segmentor`, on the CPU.
        out: The file to write.
        form: 'torchscript', 'onnx', 'exported_program' or 'state_dict' (of the folded network).
        images: Image files for the comparison, in addition to random images of several sizes.
        tolerance: Largest accepted difference, as a share of the largest logit. Defaults to 1e-3; trained networks
            were observed to differ by 1e-5 in float32, only because of the order of summation.

    Returns:
        One comparison for random images and one for ``images``.

    Raises:
        UsageError: If a package or an image is missing, the network cannot be exported, or the result does not agree;
            the message is one sentence.
    """
    if form not in FORMATS:
        raise UsageError(f'format must be one of {", ".join(FORMATS)}, got {form}')
    missing = [name for name in FORMATS[form].needs if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f'format {form} needs {", ".join(missing)}, not installed here; run: pip install '
                         f'{" ".join(FORMATS[form].needs)}')
    out = Path(out)
    if not out.parent.is_dir():
        raise UsageError(f'folder {out.parent} does not exist')
    original, folded = (Logits(network).eval().requires_grad_(False) for network in (copy.deepcopy(model), fold(model)))
    real = list(_prepared(model, images))
    temporary = out.with_name(f'{out.name}.unchecked')
    try:
        run = write_exported(form, folded, temporary)
        checks = [_compare('random', original, run, _random_images(model), out),
                  _compare('real', original, run, real, out)]
        worst = max(check.relative for check in checks)
        if not worst <= tolerance:  # also rejects NaN
            raise UsageError(f'the exported network does not agree with the original: logits differ by {worst:.1e} of '
                             f'the largest, more than {tolerance:.0e}; {out} was not written')
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    Path(f'{out}.json').write_text(json.dumps(_description(model, form, checks), indent=2) + '\n')
    return checks


def write_exported(form: str, network: Logits, path: Path) -> NetworkFunction:
    """Write a network, folded and in evaluation mode, to a file, and read it back; nothing is compared.

    Raises:
        UsageError: If the network cannot be exported.
    """
    images, *sides = EXAMPLE
    example = torch.randn(images, input_channels(network.segmentor), *sides,
                          generator=torch.Generator().manual_seed(0))
    try:
        with _traceable(), torch.no_grad():
            return FORMATS[form].write(network, example, path)
    except Exception as error:  # exporters may raise any error
        raise UsageError(f'this network cannot be exported as {form}: {first_line(error)}') from error


@contextmanager
def _traceable():
    """Suppress the warnings of exporters, and the warning of MMSegmentation's ``resize`` about sizes, whose condition
    would turn sizes into constants."""
    *defaults, _ = resize.__defaults__
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), mock.patch.object(resize, '__defaults__', (*defaults, False)):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(logging.NOTSET)


# Comparing

def _random_images(model: nn.Module) -> Iterator[Tensor]:
    divisor = _padding(model).get('size_divisor') or 1
    for number, *sides in RANDOM_SIZES:
        sides = [-(-side // divisor) * divisor for side in sides]
        yield torch.randn(number, input_channels(model), *sides, generator=torch.Generator().manual_seed(0))


def _prepared(model: nn.Module, images: Iterable[str | Path]) -> Iterator[Tensor]:
    """The network's inputs for image files, as in testing."""
    read, pipeline = ImageReader(model), Compose(preprocess_steps(model.cfg))
    for path in images:
        try:
            picture = read(path)
        except ValueError as error:
            raise UsageError(f'{path} {error}') from error
        data = pipeline(dict(img=picture.pixels))
        yield model.data_preprocessor({key: [value] for key, value in data.items()})['inputs']


@torch.no_grad()
def _compare(kind: str, original: Logits, run: NetworkFunction, images: Iterable[Tensor], out: Path) -> Check:
    count, difference, relative, pixels = 0, 0., 0., []
    for image in images:
        expected = original(image)
        try:
            actual = run(image)
        except Exception as error:
            raise UsageError(f'the exported network does not accept images of shape {tuple(image.shape)} '
                             f'({first_line(error)}); {out} was not written') from error
        if actual.shape != expected.shape:
            raise UsageError(f'the exported network gives {tuple(actual.shape)} for images of shape '
                             f'{tuple(image.shape)}, the original {tuple(expected.shape)}; {out} was not written')
        largest = float((actual - expected).abs().max())
        count += len(image)
        difference = max(difference, largest) if largest == largest else largest
        relative = max(relative, largest / float(expected.abs().max())) if largest == largest else largest
        pixels.append(float((original.labels(actual) != original.labels(expected)).float().mean()))
    if not pixels:
        raise UsageError(f'there are no {kind} images to compare on')
    return Check(kind, count, difference, relative, float(np.mean(pixels)))


# Describing

def _padding(model: nn.Module) -> dict:
    return dict(getattr(model.data_preprocessor, 'test_cfg', None) or {})


def _description(model: nn.Module, form: str, checks: list[Check]) -> dict:
    """Description of the exported network's input and output for ``out.json``."""
    preprocessor, channels = model.data_preprocessor, input_channels(model)
    order = 'as the test pipeline reads them'
    if channels == 3 and ImageReader(model).in_color:
        order = 'RGB' if getattr(preprocessor, '_channel_conversion', False) else 'BGR'
    constants = dict(mean=[0.] * channels, std=[1.] * channels)
    if getattr(preprocessor, '_enable_normalize', False):
        constants = {name: getattr(preprocessor, name).expand(channels, 1, 1).flatten().tolist() for name in constants}
    return dict(
        format=form,
        input=dict(name='image', dtype='float32', shape=['N', channels, 'H', 'W'],
                   channel_order=order,
                   normalization='(pixel - mean) / std, of pixels from 0 to 255', **constants,
                   padding=dict(_padding(model), value=preprocessor.pad_val,
                                where='right and bottom, after normalization; cut off the output again'),
                   loading=dict(loading_step(model.cfg)),
                   test_pipeline=[dict(step) for step in preprocess_steps(model.cfg)][1:]),
        output=dict(name='logits', dtype='float32', shape=['N', model.out_channels, 'H', 'W'],
                    labels='argmax over axis 1' if model.out_channels > 1 else f'sigmoid above {_threshold(model)}',
                    align_corners=model.align_corners),
        classes=model.dataset_meta['classes'],
        palette=model.dataset_meta['palette'],
        test_cfg=dict(model.test_cfg or {}),
        agreement=[check._asdict() for check in checks],
        made_with=dict(torch=torch.__version__, wsbcn_mmseg=wsbcn_mmseg.__version__))
