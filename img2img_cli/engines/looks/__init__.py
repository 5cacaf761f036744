"""Looks: styles that image processing makes at the picture's own resolution, without a model. Start with `pipeline`."""
