"""Training objectives: each maps a model and a batch to a sum of losses over a number of targets.

table         one entry for each objective, without torch
objective     the protocol, what a run gives an objective, and what it gets back
causal        next token
labelled      what the objectives of labelled data share
classification        a label of each text
token_classification  a tag of each word
question_answering    where an answer stands
pair_scoring          how well two texts fit
embedding             pairs that belong together
contrastive           each image's text among a step's, and each text's image
whole_batch           features of all pairs of a step, in chunks and over ranks
keep          next token on new text, the base's predictions on kept text
linear_loss   losses of an output layer's logits, computed in parts
logits        hidden states and output layer of a model
"""
