"""What is not science: devices, ranks, signals, files."""
