"""Weights that others have published, by name: a table of them, and the files in the user's cache."""
