"""Measurements on networks and trainings."""
