"""Fewer weights: what is taken out, and what makes up for it."""
