"""Classification: the whole encoder fine-tuned (sections 4.2, A.6, A.7), or a classifier on its frozen features."""
