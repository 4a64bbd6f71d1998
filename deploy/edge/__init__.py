"""Folders for devices: a bundle as one runtime of one kind of device reads it, with a manifest. In reading order:

``targets``: the table of targets, forms and runtimes
``manifest``: edge.json, how it is written and read
``build``: from a bundle to a folder
``plan``: what it is going to hold, before anything is written
``seq2seq``: an encoder-decoder's two graphs
``qdq``: a graph whose weights are dequantized once, as it is loaded
``weights``: the tensors, in files of at most 32 MiB
``probes``: logits that every runtime must reproduce

``web`` is the page and the module that read such a folder; ``native`` is the file that serves one on Linux, and projects
for phones.
"""
