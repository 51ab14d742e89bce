"""Everything measured on a machine with a GPU by one command, ``tools/gpu_report.sh``.

:mod:`.parts` runs parts that can be resumed, :mod:`.plan` says which, :mod:`.targets` compares their results with the
targets, :mod:`.report` writes ``report.md``. The other modules are parts.
"""
