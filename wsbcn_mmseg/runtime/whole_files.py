"""Write files atomically."""
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mmengine
from mmengine.fileio import LocalBackend, register_backend

from .errors import UsageError

UNFINISHED = '.part'  # suffix of temporary names


class WholeFileBackend(LocalBackend):
    """MMEngine's backend for local files that writes to a temporary name and renames it.

    If a process is killed while it writes, the previous file is unchanged. Errors of the file system become
    UsageErrors.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file."""
        path = Path(filepath)
        temporary = path.with_name(f'.{path.name}.{os.getpid()}{UNFINISHED}')  # other ranks may write the same file
        try:
            mmengine.mkdir_or_exist(str(path.parent))
            with temporary.open('wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise UsageError(f'{path} could not be written: {error.strerror}; files that were there before are '
                             'unchanged') from error

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text to a file."""
        self.put(obj.encode(encoding), filepath)


def _sync_folder(folder: Path) -> None:
    """Make a renaming survive a loss of power, if the system supports it."""
    if os.name == 'posix':
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_unfinished(folder: str | Path) -> None:
    """Remove temporary files of killed processes from a folder."""
    for path in Path(folder).glob(f'.*{UNFINISHED}'):
        path.unlink(missing_ok=True)


@contextmanager
def whole_files() -> Iterator[None]:
    """Within this context, MMEngine writes local files through :class:`WholeFileBackend`."""
    register_backend('local', WholeFileBackend, force=True, prefixes='')
    try:
        yield
    finally:
        register_backend('local', LocalBackend, force=True, prefixes='')
