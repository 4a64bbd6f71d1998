"""Smaller, faster bundles from larger ones, each with the measure of what it lost."""
