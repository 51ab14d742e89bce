"""The installed OpenMMLab distributions, checked once at import."""
import io
import warnings
from contextlib import contextmanager, redirect_stdout
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

# import name: (upstream distributions, OneDL distribution); both install the same import name
DISTRIBUTIONS = {
    'mmengine': (('mmengine', 'mmengine-lite'), 'onedl-mmengine'),
    'mmcv': (('mmcv', 'mmcv-lite'), 'onedl-mmcv'),
    'mmseg': (('mmsegmentation', ), 'onedl-mmsegmentation'),
}
OPTIONAL = {'mmpretrain': (('mmpretrain', ), 'onedl-mmpretrain')}
_TORCHVISION = torch.library.Library('torchvision', 'FRAGMENT')  # must stay alive: it owns the declarations
INSTALL = 'pip install onedl-mmcv==2.3.6 onedl-mmengine==0.10.12 onedl-mmsegmentation==1.4.2'


def _installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def missing_openmmlab() -> str:
    """A text on which parts of OpenMMLab are not installed and how to install them, or an empty string."""
    missing = [name for name in DISTRIBUTIONS if find_spec(name) is None]
    return f'{", ".join(missing)}, not installed here; run: {INSTALL}' if missing else ''


def openmmlab_in_part() -> bool:
    """Whether MMEngine is installed, but mmcv or mmseg is not."""
    return find_spec('mmengine') is not None and bool(missing_openmmlab())


def check_stack() -> None:
    """Raise an ImportError if two distributions of OpenMMLab overwrite each other's files."""
    both = [(name, onedl)
            for upstream, onedl in (*DISTRIBUTIONS.values(), *OPTIONAL.values()) for name in upstream
            if _installed(name) and _installed(onedl)]
    if both:
        names = [name for pair in both for name in pair]
        raise ImportError(f"{' and '.join(both[0])} are both installed and overwrite each other's files; run: "
                          f'pip uninstall -y {" ".join(names)}, then {INSTALL}')


def declare_torchvision_operators() -> None:
    """Make it possible to import a torchvision that was built for another torch; its compiled operators do not work.

    timm and mmpretrain import torchvision, and mmseg imports mmpretrain if it is installed. If the compiled part of
    torchvision cannot be loaded, its import fails because two operators are not declared. This function declares them.
    If the builds match, it does nothing.
    """
    spec = find_spec('torchvision')
    if spec is None or not spec.submodule_search_locations:
        return
    compiled = [path for folder in spec.submodule_search_locations for suffix in EXTENSION_SUFFIXES
                for path in Path(folder).glob(f'_C{suffix}')]
    try:
        for path in compiled[:1]:
            torch.ops.load_library(str(path))  # as torchvision itself does
    except OSError:
        compiled = []
    for name in () if compiled else ('nms', 'qnms'):
        if not hasattr(torch.ops.torchvision, name):
            _TORCHVISION.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')


@contextmanager
def quiet_import():
    """Suppress OpenMMLab's messages about optional packages that are not installed and not needed here."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.filterwarnings('ignore', message='Fail to import')
        yield
