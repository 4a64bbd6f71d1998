"""Measures of a model.

held_out_text   the shipped text, and token windows of a text
logits          logits of the windows, by torch or onnxruntime
perplexity      of one model
comparison      of a model with its reference: KL divergence, agreement
"""
