"""The formats of other tools, a file each: whether a folder has that layout, and what is in it."""
