"""The command ``wsbcn``, and what it shares with the commands in ``tools/``.

Nothing here imports torch, OpenMMLab or :mod:`wsbcn_mmseg` before arguments are parsed, so that ``--help`` and errors
in arguments appear at once.
"""
