"""Prepared data as a page for people."""
