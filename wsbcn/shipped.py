"""Find shipped configs and tools."""
import difflib
from pathlib import Path


def home() -> Path:
    """The folder that holds ``configs`` and ``tools``: ``wsbcn_mmseg/.mim`` of an installed wheel, or the checkout."""
    root = Path(__file__).resolve().parent.parent
    installed = root / 'wsbcn_mmseg' / '.mim'
    return installed if installed.is_dir() else root


def config_names() -> list[str]:
    """Names of the configs that can be run: their paths below ``configs``, without ``.py``."""
    configs = home() / 'configs'
    names = (path.relative_to(configs).with_suffix('') for path in configs.rglob('*.py'))
    return sorted(name.as_posix() for name in names if '_base_' not in name.parts and not _is_alias(configs, name))


def _is_alias(configs: Path, name: Path) -> bool:
    """Whether a config is an alias, for MMEngine's ``_base_``, of a config in the folder itself."""
    return len(name.parts) > 1 and (configs / f'{name.name}.py').is_file()


def find_config(text: str) -> Path:
    """Find a config file by path or name.

    Args:
        text: A path, a path below ``configs``, or the name of a file there, such as ``deeplabv3_r101_bcn_ws_voc``.
            Paths below ``configs`` may start with ``configs``, and ``.py`` may be omitted.

    Raises:
        FileNotFoundError: If there is no such config; the message gives similar names.
    """
    if Path(text).is_file():
        return Path(text)
    configs, name = home() / 'configs', text.removeprefix('configs/').removesuffix('.py')
    by_path = configs / f'{name}.py'
    if by_path.is_file():
        return by_path
    named = [path for path in config_names() if Path(path).name == name]
    if len(named) == 1:
        return configs / f'{named[0]}.py'
    raise FileNotFoundError(f'config {text} does not exist; {_suggestion(Path(name).name, named)}')


def _suggestion(name: str, named: list[str]) -> str:
    names = {Path(path).name: path for path in config_names()}
    close = named or [names[match] for match in difflib.get_close_matches(name, names, n=3, cutoff=0.6)]
    return f'did you mean {" or ".join(close)}?' if close else 'wsbcn configs lists the names of the shipped configs'
