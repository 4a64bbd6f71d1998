"""Fewer weights: what is taken out, and what makes up for it.

- ``prune_decoder`` and ``prune_encoder``: the children that make a pruned model, step by step.
- ``layers``: whole layers. ``width``: feed-forward columns and attention heads. ``sparsity``: single weights.
- ``reconstruct``: what went, taken over in closed form by the layer before.
"""
