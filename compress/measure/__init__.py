"""What a compression cost in quality, size and speed."""
