"""A cache on disk of the devices on which the kernels agreed with stock operators.

The cache is a JSON file with a list of strings. It holds no code, and entries that are not strings are ignored. Only
agreement is stored, so a file that is lost, damaged or not writable costs one more check and nothing else.
"""
import functools
import hashlib
import json
import os
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import torch

MOST = 100  # the newest agreements are kept


def path() -> Path:
    """``$XDG_CACHE_HOME/wsbcn/kernels.json``, by default in ``~/.cache``; nowhere if there is no home directory."""
    home = os.path.expanduser('~')
    cache = os.environ.get('XDG_CACHE_HOME') or (os.devnull if home == '~' else f'{home}/.cache')
    return Path(cache, 'wsbcn', 'kernels.json')


def key(device: torch.device, dtype: torch.dtype) -> str:
    """Key of an agreement: everything that it depends on."""
    return ' | '.join([*_hardware(device), *_interpreter(), f'torch {torch.__version__}', f'triton {_triton()}',
                       f'kernels {_digest()}', str(dtype)])


def _hardware(device: torch.device) -> list[str]:
    if device.type != 'cuda':
        return [device.type]
    properties = torch.cuda.get_device_properties(device)
    architecture = getattr(properties, 'gcnArchName', '') if torch.version.hip else ''
    return [properties.name, architecture or f'{properties.major}.{properties.minor}', f'driver {_driver()}']


def _interpreter() -> list[str]:
    """Triton's interpreter accepts tensors of any device, and its result does not apply to compiled kernels."""
    chosen = os.environ.get('TRITON_INTERPRET', '0')
    return [] if chosen == '0' else [f'TRITON_INTERPRET {chosen}']


@functools.cache
def _driver() -> str:
    for file in ('/proc/driver/nvidia/version', '/sys/module/amdgpu/version'):
        with suppress(OSError):
            return ' '.join(Path(file).read_text().split())
    return str(torch._C._cuda_getDriverVersion()) if hasattr(torch._C, '_cuda_getDriverVersion') else 'unknown'


def _triton() -> str:
    try:
        return import_module('triton').__version__  # several distributions provide this module
    except Exception:  # not installed, or installed and broken
        return 'unknown'


@functools.cache
def _digest() -> str:
    """Hash of the sources in this folder; they can change while the package's version stays the same."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob('*.py')):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _read() -> list[str]:
    try:
        agreed = json.loads(path().read_text(encoding='utf-8'))['agreed']
        return [one for one in agreed if isinstance(one, str)] if isinstance(agreed, list) else []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def holds(agreement: str) -> bool:
    """Whether the agreement is in the cache."""
    return agreement in _read()


def remember(agreement: str) -> None:
    """Add the agreement to the cache, if it is writable. The file is replaced atomically."""
    agreed = _read()
    if agreement in agreed:
        return
    file = path()
    temporary = file.with_name(f'.{file.name}.{os.getpid()}')
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({'agreed': [*agreed, agreement][-MOST:]}, indent=1), encoding='utf-8')
        temporary.replace(file)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
