"""Fewer bits per weight: how values are rounded, and what is measured to round them well."""
