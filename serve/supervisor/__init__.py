"""Prepares models, starts engines and the gateway, and keeps them running."""
