"""Which weights learn: all of them, or adapters beside them."""
