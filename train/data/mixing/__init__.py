"""Components of data in shares that a recipe gives, the same rows for any number of processes.

options       what a recipe says: components, their weights, and from which step other weights count
shares        which component each row of a mixture is of
mixed_rows    which row that is, and how much of each component has been seen
"""
