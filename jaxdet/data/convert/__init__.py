"""Data sets in the formats of other tools, to COCO's and back."""
