"""Find and read image files."""
import glob
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from wsbcn_mmseg.runtime.errors import UsageError

IMAGE_FORMATS = ('BMP', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')  # for pixels; no other is opened
SUFFIXES = {'.bmp', '.dib', '.gif', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg', '.mpo', '.pbm', '.pgm', '.png', '.pnm',
            '.ppm', '.tif', '.tiff', '.webp'}  # file types that are read from folders

ARRAYS = {'.npy', '.npz'}  # read from folders without images


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as RGB, uint8 of shape (H, W, 3).

    The image is rotated according to EXIF. Gray becomes RGB, transparent pixels become white, 16-bit values are divided
    by 257, and animations give their first frame.

    Raises:
        ValueError: If the file is missing, damaged or not a supported image; the message does not contain the path.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            with Image.open(path, formats=IMAGE_FORMATS) as image:
                return np.array(_rgb(ImageOps.exif_transpose(image)))
    except FileNotFoundError as error:
        raise ValueError('does not exist') from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f'has more than {Image.MAX_IMAGE_PIXELS:,} pixels') from error
    except Image.UnidentifiedImageError as error:
        raise ValueError('is not an image of a supported format') from error
    except ValueError:
        raise
    except Exception as error:  # decoders may raise any error on damaged files
        raise ValueError(f'cannot be decoded ({error or type(error).__name__})') from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ('I', 'I;16', 'I;16B', 'I;16L', 'I;16N'):
        values = np.asarray(image).astype(np.int64)
        if not 0 <= values.min() <= values.max() < 2**16:
            raise ValueError(f'has values from {values.min()} to {values.max()}, beyond 16 bits')
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    if image.mode == 'F':
        raise ValueError('has floating-point values of unknown range; convert it to 8 or 16 bits')
    if 'A' in image.mode or 'a' in image.mode or 'transparency' in image.info:
        image = image.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')
    return image.convert('RGB')


def find_images(patterns: Iterable[str | Path]) -> list[Path]:
    """All files from paths, folders (including subfolders) and globs, each once.

    Raises:
        UsageError: If a folder or a glob contains no image.
    """
    found = []
    for pattern in map(str, patterns):
        if Path(pattern).is_dir():
            inside = sorted(path for path in Path(pattern).rglob('*') if path.is_file())
            files = [path for path in inside if path.suffix.lower() in SUFFIXES] or \
                [path for path in inside if path.suffix.lower() in ARRAYS]
        elif not Path(pattern).exists() and glob.has_magic(pattern):
            files = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())
        else:
            files = [Path(pattern)]  # reading it reports missing and damaged files
        if not files:
            raise UsageError(f'{pattern} holds no images')
        found += files
    return list(dict.fromkeys(found))
