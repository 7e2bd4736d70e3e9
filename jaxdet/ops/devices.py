"""Over how many devices arrays lie."""

import jax


def devices_of_arrays() -> int:
    """Over how many devices an array may be split where this is traced.

    All of them, as the compiler decides; but one inside `jax.shard_map`, where each device has arrays of its own.
    """
    return 1 if jax.sharding.get_abstract_mesh().manual_axes else jax.device_count()
