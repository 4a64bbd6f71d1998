"""Smaller models taught by larger ones.

- ``recipe``: who teaches whom, on what text.
- ``run``: ``everlearn distill``, from the recipe to the registered student.
- ``preparation``: what both children do before the first step.
- ``teach_decoder``: the child that teaches a decoder. ``decoder_objective``: its loss; ``kept_predictions``: the same
  from a teacher's predictions on disk.
- ``teach_encoder``: the child that teaches an encoder. ``encoder_objective``: its loss and its batches.
- ``train.data.augmenting.answers``: a served model as teacher, by the text of its answers.
"""
