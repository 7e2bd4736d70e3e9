"""Detections in COCO's terms, and COCO's score of them.  NumPy and pycocotools, no jax."""

from jaxdet.evaluation.categories import match_categories
from jaxdet.evaluation.results import check_results, image_results, read_results, write_results
from jaxdet.evaluation.score import STATISTICS, Scores, check_truth, score
from jaxdet.evaluation.tables import per_class_table, summary_table

__all__ = [
    "STATISTICS",
    "Scores",
    "check_results",
    "check_truth",
    "image_results",
    "match_categories",
    "per_class_table",
    "read_results",
    "score",
    "summary_table",
    "write_results",
]
