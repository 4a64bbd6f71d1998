"""Cleaning of the data: what is left out, and why.

clean             broken texts, repetitions
learned_parts     what of an example is learnt: what duplicates are judged by
words             words of a text in any script, as numbers
near_duplicates   near duplicates, by MinHash
duplicates        duplicates among the documents of all files
"""
