"""Cleaning of the data: what is left out, what is changed, and why.

cleaner           all of it, in order
options           the recipe's keys
clean             broken texts, repetitions
encoding          wrong encodings and Unicode's forms, with code spared
language          languages, and which to keep
quality           the rules of Gopher and C4; lines taken out; see also repetition, lists, advertisements
decontaminate     what evaluation sets hold
personal/         personal data, masked
boilerplate       lines that many documents have
learned_parts     what of an example is learnt: what duplicates are judged by
words             words of a text in any script, as numbers
near_duplicates   near duplicates, by MinHash
duplicates        duplicates among the documents of all files
samples           examples of what was left out, for people to look at
"""
