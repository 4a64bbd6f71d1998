"""Signed updates of edge folders: a channel that a publisher writes and devices follow. In reading order:

``release``: what a channel says of a version, and which device takes the canary
``delta``: a file as the difference from a former one, tensor by tensor
``blobs``: files and differences by their sha256
``keys``: private keys, in files outside of the channel
``metadata``: the TUF repository: root, targets, snapshot and timestamp
``channel``: what a channel holds, to read
``publisher``: publish, roll back, refresh
``device``: a device's half; ``web`` is the same half for a page
"""
