"""Which engine takes a request, and the way of its answer."""
