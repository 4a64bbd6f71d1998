"""Processes: children within limits, and what ends with its parent."""
