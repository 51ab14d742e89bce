"""Errors of users, and short texts about errors."""
from collections.abc import Sequence


class UsageError(Exception):
    """A mistake in how a command or function is used. The message is one sentence and explains how to correct it."""


class CheckpointError(UsageError, ValueError):
    """A checkpoint that cannot be used."""


class MissingCheckpointError(UsageError, FileNotFoundError):
    """A checkpoint that does not exist."""

    def __str__(self) -> str:
        return self.args[0]


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def count_tensors(names: Sequence[str], most: int = 3) -> str:
    """``'5 tensors (a, b, c, ...)'``: how many, and the first of them."""
    shown = f' ({", ".join(names[:most])}{", ..." if len(names) > most else ""})' if names else ''
    return f'{len(names)} tensors{shown}'
