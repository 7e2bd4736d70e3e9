"""Weights that are a function of their torch name, so that golden numbers need no weight file.

An array is drawn from NumPy's PCG64, seeded with the CRC-32 of a salt and the name, and scaled so that activations
keep about unit variance through the network.  The rule is that of the golden numbers; another rule gives others.
"""

import re
import zlib
from collections.abc import Mapping

import numpy as np

from jaxdet.checkpoints.names.mmdet import to_mmdet
from jaxdet.checkpoints.tree import Variables, flatten, unflatten

WEIGHT_GAIN = {
    "conv_offset": 0.5,
    "rpn_conv": 1.0,
    "rpn_cls": 0.7,
    "rpn_reg": 0.15,
    "fc_cls": 1.4,
    "fc_reg": 0.25,
    "conv_logits": 0.8,
    "lateral_convs": 0.3,
    "fpn_convs": 0.6,
    "fc_mask_iou": 0.7,
    "retina_cls": 0.8,
    "retina_reg": 0.3,
    "theta.conv": 1.0,
    "phi.conv": 1.0,
    "g.conv": 1.0,
    "conv_out.conv": 0.7,
    "query_conv": 0.7,
    "value_conv": 1.0,
    "appr_geom_fc": 1.0,
    "proj_conv": 1.0,
    "channel_add_conv.0": 1.0,
    "channel_add_conv.3": 0.5,
    "conv_mask": 1.0,
    "conv_res.conv": 1.0,
    "pre_module": 1.0,
    "retina_rep": 1.0,
    "conv_reps": 1.0,
    "bbox_head.conv_cls": 1.0,
    "bbox_head.conv_reg": 0.5,
    "controller": 0.6,
    "conv_coeff": 0.3,
    "conv_pred": 0.3,
    "protonet.10.": 0.3,
    "segm_conv": 0.5,
}
"""Standard deviation times sqrt(fan in), by a part of the name; sqrt(2) for all others."""


BIAS_SHIFT = {
    ("retina_cls.bias", 720): -2.0,
    ("conv_cls.bias", 80): -2.0,
    ("conv_reg.bias", 4): 3.0,
    ("conv_coeff.bias", 96): 0.3,
}
"""What is added to a bias, by the end of its name and its length.

Else one class in two of every place would count as found, FCOS's boxes would have no area, YOLACT's masks no pixel.
"""


_DEEP = re.compile(r"layer3\.([6-9]|\d\d)\.bn3")
"""Last norms of the many blocks that a network of 101 layers has more: still smaller, lest features grow."""


def normal(tag: str, shape: tuple[int, ...], salt: str = "") -> np.ndarray:
    """Standard normal float64 array ``shape``, decided by salt and tag alone."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(f"{salt}{tag}".encode())))
    return generator.standard_normal(shape)


def named_weight(name: str, shape: tuple[int, ...], salt: str = "") -> np.ndarray:
    """The float32 array of a torch name, in torch layout."""
    noise = normal(name, shape, salt)
    kind = name.rpartition(".")[2]
    if kind == "running_mean":
        values = 0.1 * noise
    elif kind == "running_var":
        values = np.exp(0.1 * noise)
    elif kind == "bias":
        shifts = (shift for (end, size), shift in BIAS_SHIFT.items() if name.endswith(end) and shape == (size,))
        values = 0.05 * noise + next(shifts, 0.0)
    elif kind == "gamma":  # layers that start at zero get other values, so that they are tested
        values = np.full(shape, 0.5)
    elif kind == "scale" or len(shape) == 1 or (len(shape) == 3 and shape[1:] == (1, 1)):
        # the scale of a normalisation, or of a level; the last of a bottleneck is small, as in training
        values = 1.0 + 0.1 * noise
        if name.endswith("bn3.weight"):
            values = (0.1 if _DEEP.search(name) else 0.4) * values
    else:
        # a transposed convolution has its inputs first, and 2x2 blocks at stride 2 see each of them once
        fan_in = shape[0] if name.endswith("upsample.weight") else np.prod(shape[1:])
        gain = next((g for part, g in WEIGHT_GAIN.items() if part in name), np.sqrt(2.0))
        values = gain / np.sqrt(fan_in) * noise
    return values.astype(np.float32)


def state_dict(shapes: Variables | Mapping[str, object], salt: str = "") -> dict[str, np.ndarray]:
    """Torch-named weights for a model's variables (arrays or shapes of them); RDSNet's refinement keeps its own."""
    zeros = unflatten({path: np.zeros(leaf.shape, np.float32) for path, leaf in flatten(shapes).items()})
    names = {name: value.shape for name, value in to_mmdet(zeros).items() if not name.startswith("mbrm.")}
    return {name: named_weight(name, shape, salt) for name, shape in names.items()}
