"""Export: a trained model as StableHLO programs, in a folder that runs without jaxdet (docs/EXPORT.md)."""

from jaxdet.exporting.folder import export

__all__ = ["export"]
