"""The serving room: the gateway (public door), the engines behind it, and the supervisor of both."""
