"""Checks of a checkpoint file before it is loaded: is it a checkpoint, is it complete, does it contain code."""
import hashlib
import os
import pickletools
import re
import urllib.error
import zipfile
import zlib
from pathlib import Path
from urllib.parse import urlparse

import torch

from .errors import CheckpointError

ZIP, PICKLE = b'PK', b'\x80'  # the first bytes of files of torch.save, today and before version 1.6


def is_url(path: str) -> bool:
    """Whether a path is an http or https URL."""
    return path.startswith(('http://', 'https://'))


def download(url: str) -> str:
    """Download a file into the cache folder of :mod:`torch.hub`, unless it is there already, and return its path.

    Raises:
        CheckpointError: If the download fails.
    """
    folder = Path(torch.hub.get_dir(), 'checkpoints')
    name = Path(urlparse(url).path).name or 'checkpoint.pth'
    path = folder / f'{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}'  # other URLs may have the same file name
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)  # renames a temporary file at the end
        except (OSError, urllib.error.URLError, ValueError) as error:
            raise CheckpointError(f'{url} cannot be downloaded: {error}') from error
    return str(path)


def check_file(path: str | Path) -> None:
    """Raise a CheckpointError if a file is not one of ``torch.save``, is cut short, or differs from its checksums."""
    try:
        with open(path, 'rb') as file:
            start = file.read(64)
    except OSError as error:  # a folder, no permission
        raise CheckpointError(f'{path} cannot be read: {error.strerror}') from error
    if not start:
        raise CheckpointError(f'{path} is empty')
    if not start.startswith((ZIP, PICKLE)):
        kind = 'an HTML page; did a download fail?' if start.lstrip().lower().startswith((b'<!doc', b'<html')) else \
            'not a PyTorch checkpoint'
        raise CheckpointError(f'{path} is {kind}')
    if start.startswith(ZIP):
        _check_checksums(path)


def _check_checksums(path: str | Path) -> None:
    """Compare each record of a zip file with its checksum; ``torch.load`` does not check it."""
    damaged = f'{path} is damaged: %s; use another copy, or an earlier checkpoint'
    try:
        with zipfile.ZipFile(path) as file:
            if not any(record.CRC for record in file.infolist()):
                return  # saved after torch.serialization.set_crc32_options(False)
            record = file.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError,
            UnicodeDecodeError) as error:
        raise CheckpointError(damaged % f'its index cannot be read or it is cut short ({error})') from error
    if record is not None:
        raise CheckpointError(damaged % f'the checksum of {record} does not match')


def foreign_code(path: str | Path, error: str) -> str | None:
    """The function that reading a file would call, for the message; None if it holds weights only or is damaged.

    Args:
        path: The file, or its URL.
        error: The message of ``torch.load``.
    """
    named = re.search(r'GLOBAL ([\w.]+)', error) or re.search(r'Unsupported class ([\w.]+)', error)
    if named:
        return named[1]
    if 'reduce for unrecognized function' in error or 'may hold' in error:
        return 'a function that weights do not need'
    if not os.path.isfile(path):
        return None
    names = _globals(_pickle_in(path))
    return next((name for name in names if not name.startswith(('torch', 'collections.OrderedDict'))), None)


def _pickle_in(path: str | Path) -> bytes:
    if not zipfile.is_zipfile(path):
        return Path(path).read_bytes()
    with zipfile.ZipFile(path) as file:
        name = next((name for name in file.namelist() if name.endswith('data.pkl')), None)
        return file.read(name) if name else b''


def _globals(pickle: bytes) -> list[str]:
    """Names that a pickle imports, read without executing it. Reading stops where the file is not a valid pickle."""
    names, strings = [], []
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name in ('GLOBAL', 'INST'):
                names.append(argument.replace(' ', '.'))
            elif opcode.name == 'STACK_GLOBAL':
                names.append('.'.join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    except ValueError:  # not a pickle from here on
        pass
    return names
