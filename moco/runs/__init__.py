"""What a run is: its configuration, its folder, its checkpoints, and the recipes that it starts from."""
