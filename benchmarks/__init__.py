"""Measurements that print ratios against peers run side by side."""
