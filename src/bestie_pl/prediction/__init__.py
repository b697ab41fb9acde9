"""Everyday use of a network: from any source of images to results that can be looked at and written."""
