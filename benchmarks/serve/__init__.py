"""Measurements of serve/, each beside a peer in the same run."""
