"""What XLA is told has the effect that it is told for."""

import jax
import jax.numpy as jnp
import pytest

from jaxdet.runtime.compiling import compiler_options


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the option is XLA:CPU's")
def test_arrays_are_freed_before_the_next_are_made() -> None:
    x, others = jnp.ones((256, 256)), [jnp.ones((256, 256))] * 6

    def sums(x: jax.Array, others: list[jax.Array]) -> list[jax.Array]:
        return [jnp.tanh(x @ other).sum() + (x @ other).sum() for other in others]

    def kept(options: dict[str, str] | None) -> int:
        compiled = jax.jit(sums, compiler_options=options).lower(x, others).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    assert kept(compiler_options()) < kept(None) / 2
