"""The steps of a job. ``continual.pipeline`` calls them in this order:

``plan``: the champion and the weights that a job starts from, pinned
``teach``: the steps up to a trained candidate
``replay``: the buffer of examples of earlier domains
``reservoir``: which examples it holds
``self_replay``: samples of what the model knew before its first job
``mixture``: the new examples and the replayed ones in their shares
``examine``: the candidate beside the champion on the same held-out examples
``measure``: how likely a model finds held-out examples
``gate``: the decision, by the thresholds of the recipe
``bounds``: how sure a mean difference is
``best``: the best that a model ever scored, which the gate remembers
``promote``: the one transaction in which a job succeeds
"""
