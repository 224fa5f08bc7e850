"""Encoded images and the files that hold many of them."""
