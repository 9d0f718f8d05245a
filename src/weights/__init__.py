"""What checkpoints hold beside their numbers."""
