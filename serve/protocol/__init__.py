"""The request bodies that this server accepts, as allow-lists."""
