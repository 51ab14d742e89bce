"""Trainings side by side, and the figures of the paper made again."""
