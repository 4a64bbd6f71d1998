"""Which weights are trained: all of them, or adapters beside them.

lora   low-rank updates, added before training and merged after it
"""
