"""More to learn from than there is.

answers     a served model's answers as text to learn
paraphrase  texts in other words, by a served model
pictures    the same picture otherwise, each time that it comes
options     how, without what computes it
"""
