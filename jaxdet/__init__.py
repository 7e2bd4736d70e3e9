"""jaxdet: two-stage instance segmentation in JAX."""
