"""RoIAlign as kernels, for GPUs and for TPUs."""
