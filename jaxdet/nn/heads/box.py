"""Box heads: class and box of a crop.  N crops, C channels, K classes."""

import flax.linen as nn
import jax

from jaxdet.nn.blocks.layers import Linear, gaussian


class BoxHead(nn.Module):
    """A trunk (``jaxdet.nn.heads.trunk``), and two linear layers that say class and box.

    Crops ``[N, 7, 7, C]`` -> logits ``[N, K + 1]`` of K = ``num_classes``, background last, and deltas
    ``[N, K, 4]``, or ``[N, 1, 4]`` where boxes are class-agnostic.
    """

    trunk: nn.Module
    class_agnostic: bool = False

    @nn.compact
    def __call__(self, crops: jax.Array, num_classes: int) -> tuple[jax.Array, jax.Array]:
        x = self.trunk(crops)
        # Standard deviations of Fast R-CNN (Girshick 2015, section 2.3): at first all scores are alike and boxes stay.
        logits = Linear(num_classes + 1, gaussian(0.01), name="logits")(x)
        boxes = 1 if self.class_agnostic else num_classes
        deltas = Linear(4 * boxes, gaussian(0.001), name="deltas")(x)
        return logits, deltas.reshape(-1, boxes, 4)


class ClassHead(nn.Module):
    """As `BoxHead` without boxes, which stay where they are: a part behind the stages finds them (Grid R-CNN).

    Crops ``[N, 7, 7, C]`` -> logits ``[N, K + 1]``, background last, and None for deltas.
    """

    trunk: nn.Module

    @nn.compact
    def __call__(self, crops: jax.Array, num_classes: int) -> tuple[jax.Array, None]:
        return Linear(num_classes + 1, gaussian(0.01), name="logits")(self.trunk(crops)), None
