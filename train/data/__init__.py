"""From files to packed batches.

options            how data is prepared
prepare            the path from top to bottom; ``prepare_child`` runs it in a process with limits
many_machines      the same as steps of datatrove's pipelines
reading/           files to examples
examples           an example: a text or a conversation
cleaning/          what is left out, and why: broken texts, duplicates
collecting/        each file's cleaned documents, with what finds their duplicates, by several processes
tokenize           examples to token ids; ``chat_template`` writes conversations, ``train_tokenizer`` makes a tokenizer,
                   of one of the ``tokenizer_kinds``
store              tokenized examples on disk
card               what went in, what was left out, what came out
page/              that as an HTML page
augmenting/        more to learn from: other words, other looks
mixing/            components with weights: which row comes when
packing            examples to rows, rows to batches: what training reads
splitmix           random numbers that are the same everywhere
"""
