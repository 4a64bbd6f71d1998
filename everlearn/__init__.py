"""The kernel of everlearn: bundles, the registry, settings, errors and the command line."""

__version__ = "0.1.0"
