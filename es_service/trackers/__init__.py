"""Copies of a run's figures for other tools, made from the files in its directory; one tool, one file."""
