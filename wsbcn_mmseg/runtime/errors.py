"""The error whose message commands print without a traceback."""


class UsageError(Exception):
    """A mistake in how a command or function is used. The message is one sentence and explains how to correct it."""
