"""Metrics of detection: PASCAL VOC's and COCO's."""
