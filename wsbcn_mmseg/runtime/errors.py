"""The error that commands show as one sentence."""


class UsageError(Exception):
    """Something that the user can put right; the message says how."""
