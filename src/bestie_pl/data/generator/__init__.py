"""Generator of the shapes data set: scenes of textured, overlapping objects, written in VOC layout."""
