"""Layers and blocks that larger modules are built of."""
