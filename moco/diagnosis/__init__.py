"""Is it working? What is measured during training, and what it means."""
