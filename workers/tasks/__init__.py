"""Fitness problems, one file each."""
