"""Ship a model: folders for devices, signed updates, other runtimes, containers, monitoring."""
