"""How views of images reach the device."""
