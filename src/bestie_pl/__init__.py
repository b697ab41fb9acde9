"""bestie-pl: weakly-supervised instance segmentation from image tags or one point per object."""
