"""Crops or feature maps -> classes, boxes, masks and their scores."""
