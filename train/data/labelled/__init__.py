"""Examples with labels: what a model shall say of a text, rather than how the text goes on.

example   a labelled example before it is tokens
forms     the records in which people keep them, and what is wrong with one
images    the picture of an pair of image and text
encode    to ids with the columns ``labels`` and ``segments`` of a store
labels    which labels there are, how often, and on which side of the split
rows      a store's examples to batches, each padded to its longest
"""
