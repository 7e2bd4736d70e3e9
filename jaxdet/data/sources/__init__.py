"""Where records come from: COCO folders, TFDS, and how they lie in memory."""
