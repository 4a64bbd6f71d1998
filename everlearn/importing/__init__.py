"""Bringing models in: from folders, GGUF files, a hub or the catalogue, and the checks that each must pass."""
