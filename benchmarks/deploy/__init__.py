"""Measurements of deploy/, each beside a peer in the same run."""
