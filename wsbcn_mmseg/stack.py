"""Which OpenMMLab is installed, checked once at import."""
import io
import warnings
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

# import name: (upstream distributions, OneDL distribution); both install the same import name
DISTRIBUTIONS = {
    'mmengine': (('mmengine', 'mmengine-lite'), 'onedl-mmengine'),
    'mmcv': (('mmcv', 'mmcv-lite'), 'onedl-mmcv'),
    'mmseg': (('mmsegmentation', ), 'onedl-mmsegmentation'),
}
INSTALL = 'pip install onedl-mmcv==2.3.6 onedl-mmengine==0.10.12 onedl-mmsegmentation==1.4.2'


def _installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def check_stack() -> None:
    """Raise an ImportError of one sentence where OpenMMLab is missing or two of its distributions lie over each other.
    """
    missing = [name for name in DISTRIBUTIONS if find_spec(name) is None]
    if missing:
        raise ImportError(f'wsbcn_mmseg needs {", ".join(missing)}, not installed here; run: {INSTALL}')
    both = [(name, onedl) for upstream, onedl in DISTRIBUTIONS.values() for name in upstream
            if _installed(name) and _installed(onedl)]
    if both:
        names = [name for pair in both for name in pair]
        raise ImportError(f'{" and ".join(both[0])} lie over each other in one folder; run: '
                          f'pip uninstall -y {" ".join(names)}, then {INSTALL}')


@contextmanager
def quiet_import():
    """Import OpenMMLab without its remarks about optional parts that are not installed and not needed here."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.filterwarnings('ignore', message='Fail to import')
        yield
