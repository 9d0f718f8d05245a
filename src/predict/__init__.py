"""Detection in images and videos of the user."""
