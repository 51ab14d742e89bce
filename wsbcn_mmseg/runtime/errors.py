"""Errors that users can fix, and helpers for messages."""
from collections.abc import Sequence


class UsageError(Exception):
    """A mistake in how a command or function is used. The message is one sentence and explains how to correct it."""


class Faults:
    """Collects UsageErrors to report them together: use ``with faults:`` around each check, then :meth:`raise_all`."""

    def __init__(self):
        self.sentences: list[str] = []

    def __enter__(self) -> 'Faults':
        return self

    def __exit__(self, kind, error, traceback) -> bool:
        if isinstance(error, UsageError):
            self.add(str(error))
            return True
        return False

    def add(self, sentence: str) -> None:
        """Add a fault, unless it was added before."""
        if sentence not in self.sentences:
            self.sentences.append(sentence)

    def raise_all(self) -> None:
        """Raise one UsageError with a line for each fault, if there are any."""
        if self.sentences:
            raise UsageError('\n'.join(self.sentences))


class CheckpointError(UsageError, ValueError):
    """A checkpoint that cannot be used."""


class MissingCheckpointError(UsageError, FileNotFoundError):
    """A checkpoint that does not exist."""

    def __str__(self) -> str:
        return self.args[0]


def first_line(error: Exception) -> str:
    """The first line of an error's message, without the quotes of a KeyError; its type if the message is empty."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0]


def describe(error: Exception) -> str:
    """Type and first line of an error."""
    kind, message = type(error).__name__, first_line(error)
    return kind if message == kind else f'{kind}: {message}'


def count_tensors(names: Sequence[str], most: int = 3) -> str:
    """The number of tensors and the first names, as in ``'5 tensors (a, b, c, ...)'``."""
    shown = f' ({", ".join(names[:most])}{", ..." if len(names) > most else ""})' if names else ''
    return f'{len(names)} tensors{shown}'
