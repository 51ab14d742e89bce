"""Comparisons of several trainings, and reproductions of the paper's figures."""
