"""Object detection, instance segmentation and keypoints: the paper's detectors on plain PyTorch."""
