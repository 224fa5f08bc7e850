"""Tasks beyond classification that features are transferred to (section 4.2 of the paper)."""
