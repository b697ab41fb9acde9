"""Points from what annotation programs write: one point for each object, wherever it was marked by a larger shape.

A point is taken as it is, of a box or an ellipse its centre, of a polygon or a mask the pixel of it that is nearest to
its centroid. Regions of crowds are no objects and give only a tag.

All formats here but COCO's keypoints measure from the image's *corner*, so that the first pixel reaches from 0 to 1;
here 0 is its centre, half a pixel further. COCO's keypoints are pixels already.

EXIF: LabelMe, CVAT, Label Studio and VIA show images turned as their EXIF orientation says, and so do we; whoever wrote
a COCO file may have used either. Stated widths and heights are kept, and compared with the images when these are read.
They tell a quarter turn, but neither half turns nor mirrors: convert such images beforehand (for example with
``ImageOps.exif_transpose``) if their points turn out to be misplaced.
"""
