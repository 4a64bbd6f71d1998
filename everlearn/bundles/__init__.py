"""Bundles: immutable directories that their ecosystem's tools read, what they may hold, and how they are looked into."""
