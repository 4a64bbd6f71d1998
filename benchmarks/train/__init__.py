"""Measurements of train/, each beside a peer in the same run."""
