"""A run's folder: who works on it, what run it is, its checkpoints, and the version that comes of it."""
