"""Pictures of detections: overlays, and grids of predictions beside the ground truth.

What is drawn is COCO's: dicts with ``bbox`` (x, y, width, height), ``category_id`` and, where there is one,
``segmentation``; a ``score`` marks a detection.  So annotations and results are drawn by the same functions.
"""

from jaxdet.visualize.grid import prediction_grid, save_predictions
from jaxdet.visualize.overlay import overlay

__all__ = ["overlay", "prediction_grid", "save_predictions"]
