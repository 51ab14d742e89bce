"""The command ``wsbcn``, and what it shares with the commands in ``tools/``.

Nothing here imports torch, OpenMMLab or :mod:`wsbcn_mmseg` before arguments are parsed: ``--help`` and wrong arguments
are answered at once.
"""
