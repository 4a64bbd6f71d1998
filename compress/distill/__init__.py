"""Smaller models taught by larger ones."""
