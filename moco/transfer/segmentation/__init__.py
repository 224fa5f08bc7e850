"""Semantic segmentation: a class for every pixel (appendix A.5 of the paper)."""
