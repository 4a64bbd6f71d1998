"""Cleaning of the data: what is left out, what is changed, and why.

cleaner           all of it, in order
clean             broken texts, repetitions
language          languages, and which to keep
decontaminate     what evaluation sets hold
personal/         personal data, masked
learned_parts     what of an example is learnt: what duplicates are judged by
words             words of a text in any script, as numbers
near_duplicates   near duplicates, by MinHash
duplicates        duplicates among the documents of all files
samples           examples of what was left out, for people to look at
"""
