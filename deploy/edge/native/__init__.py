"""One file that serves an edge folder on Linux, and sample projects for phones. In reading order:

``__main__``: the options of the file
``runner``: keeps one server running, and replaces it when there is a newer version
``listening``: the socket that servers share
``pack``: makes the file, with pex

``systemd/`` has a unit; ``android/``, ``ios/`` and ``react-native/`` are projects to start from.
"""
