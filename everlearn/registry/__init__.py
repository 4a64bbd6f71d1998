"""The registry: names to versions to bundles, in one database, with keys, audit and usage beside them."""
