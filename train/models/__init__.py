"""The model of a run.

load          a Hugging Face directory as a causal language model
build         the model to train, from a base or from scratch
image_text    CLIP: two towers that end in one space
packed_rows   whether it can learn from rows that several documents share
save          the trained model as a Hugging Face directory
"""
