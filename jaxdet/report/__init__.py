"""Where a model goes wrong: kinds of errors and their price, as numbers and as a page to look at."""

from jaxdet.report.build import report

__all__ = ["report"]
