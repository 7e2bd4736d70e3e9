"""From records to batches: which images, in which order, transformed by whom."""
