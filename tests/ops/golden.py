"""The reference's numbers for single operators, and the inputs that they were made with."""

import numpy as np

from tests.parity import judge
from tests.parity.weights import normal

OPS = judge.load("ops")
INPUTS = judge.load_inputs()


def compare(key: str, ours: np.ndarray, tolerance: float = 2e-5) -> None:
    """AssertionError where our tensor, in torch layout, is not the stored one; absolute and relative tolerance."""
    want, have = judge.same_elements(OPS, key, np.asarray(ours))
    np.testing.assert_allclose(have, want, rtol=tolerance, atol=tolerance, err_msg=key)


__all__ = ["INPUTS", "OPS", "compare", "normal"]
