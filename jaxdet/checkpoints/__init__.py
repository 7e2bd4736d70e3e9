"""Weights in and out: other code bases' names and files, strict merges, the store of a run."""
