"""Queued jobs: their table and files, the broker, and the workers that run them."""
