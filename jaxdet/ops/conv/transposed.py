"""Transposed convolutions that double a map, in groups: each pixel of the result reads two by two pixels.

Letters in shapes: N maps, h w rows and columns, C F channels in and out.
"""

import itertools

import jax
import jax.numpy as jnp

# What rows 2i and 2i + 1 of the result read: (row of the kernel, row of the map beside i).  Likewise columns.
_READ = (((1, 0), (3, -1)), ((2, 0), (0, 1)))


def double(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    """Transposed convolution with a 4x4 kernel, stride 2 and padding 1, as blocks ``[N, h, w, 2, 2, F]``.

    Of ``x [N, h, w, C]`` and ``kernel [4, 4, C, F / groups]``: output channels ``F / groups`` at a time read
    ``C / groups`` channels.  A matrix product for each of the four places in a block: nothing is multiplied with the
    zeros that a stride puts between pixels, and groups are a dimension of the product, which all backends do well.
    """
    n, h, w, channels = x.shape
    members = channels // groups
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(n, h + 2, w + 2, groups, members)
    taps = kernel.reshape(4, 4, groups, members, kernel.shape[-1])
    places = []
    for rows, columns in itertools.product(_READ, _READ):
        pairs = list(itertools.product(rows, columns))
        read = [padded[:, 1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w] for (_, dy), (_, dx) in pairs]
        own = [taps[ky, kx] for (ky, _), (kx, _) in pairs]
        # g: the group; k: its channels under each of the four taps.
        places.append(jnp.einsum("nhwgk,gkf->nhwgf", jnp.concatenate(read, -1), jnp.concatenate(own, 1)))
    return jnp.stack(places, 3).reshape(n, h, w, 2, 2, groups * kernel.shape[-1])
