"""Models on the devices of users."""
