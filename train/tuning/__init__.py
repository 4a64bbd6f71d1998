"""Choice of the trained weights: all of them, or adapters.

lora   low-rank updates, added before training and merged after it
"""
