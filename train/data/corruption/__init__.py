"""Rows whose tokens are hidden from the model that shall say them.

word_starts   which tokens begin a word, and which stand for no text
masking       some words masked (BERT)
spans         some spans replaced by sentinels (T5)
pairs         sources and targets in shared rows
"""
