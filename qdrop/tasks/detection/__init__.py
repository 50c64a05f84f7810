"""Detection of objects: data in COCO's format, boxes, average precision."""
