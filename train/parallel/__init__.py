"""One process or several.

group   this process among the others: wraps the model in DDP or FSDP2, sums, gathers
"""
