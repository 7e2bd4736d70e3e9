"""What training, evaluation and prediction ask of a model; they use nothing else of it."""

from typing import Any, Protocol, runtime_checkable

import jax

from jaxdet.structures import Batch, Detections


@runtime_checkable
class Detector(Protocol):
    """A model with one or two stages.  A linen module that has the last four members satisfies it.

    ``losses`` and ``predict`` are called through ``init`` and ``apply``, by name.  The models of jaxdet also have
    ``intermediates(batch)``, what is computed on the way to the detections, by name: for tests and comparisons; and
    ``suppression_key``, where their suppression is, for limits of a single prediction (`jaxdet.models.limits`).
    """

    def init(self, rngs: jax.Array, *args: Any, method: str) -> Any: ...

    def apply(self, variables: Any, *args: Any, method: str, mutable: Any = False) -> Any: ...

    @property
    def num_classes(self) -> int:
        """K, the background not counted."""
        ...

    def losses(self, batch: Batch, key: jax.Array) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Loss terms by name, whose sum is minimised, and metrics: scalars; ``key`` drives the random choices."""
        ...

    def predict(self, batch: Batch) -> Detections:
        """Detections in coordinates of the resized images."""
        ...

    def is_frozen(self, path: tuple[str, ...]) -> bool:
        """Whether the parameter at this path is not trained."""
        ...
