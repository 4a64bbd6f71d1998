"""Measurements of compress/, each beside a peer in the same run."""
