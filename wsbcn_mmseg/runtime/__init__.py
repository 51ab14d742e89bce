"""Installed OpenMMLab, errors, checkpoints, and the start of processes."""
