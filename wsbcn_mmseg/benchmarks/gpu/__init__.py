"""All measurements on a machine with a GPU by one command, ``tools/gpu_report.sh``.

:mod:`.parts` runs the parts and can resume them, :mod:`.plan` lists them, :mod:`.targets` compares their results with
the targets, and :mod:`.report` writes ``report.md``. The other modules are parts.
"""
