"""From files to packed batches: read, clean, deduplicate, split, tokenize, store, pack.

``prepare`` is the path from top to bottom; ``store`` is what it leaves on disk; ``packing`` is what training reads.
"""
