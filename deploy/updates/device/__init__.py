"""A device's half: it follows a channel, and serves the last version that it has verified. In reading order:

``store``: the device's folder, and which version is current
``transport``: requests, bounded in time
``download``: bytes by their sha256, resumed where they broke off
``update``: from the channel's news to a verified version
``probes``: whether this machine computes a version as it should
"""
