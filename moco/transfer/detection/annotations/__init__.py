"""Annotated images as people have them: one file a format."""
