"""The second stage: heads that look at regions of interest, once or in a cascade of stages."""
