"""Boxes and a pyramid -> a crop of features for each box."""
