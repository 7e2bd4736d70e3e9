"""Image -> feature maps by level."""
