"""The registry: names to versions to bundles, in one database. In reading order:

``registry``: add, resolve, promote and delete versions
``records``: versions and aliases, inside a transaction of the caller's
``tables``: what is in the database
``database``: connection, transactions, migration on opening; ``migrations`` holds the steps
``blobs``: the store of files
``keys``: API keys
``usage``: what each key used
``audit``: who did what
"""
