"""The command line. In reading order:

``main``: the program, the table of commands, errors and exit codes
``installation``: ``everlearn config``, ``doctor`` and ``version``
``import_model``: ``everlearn import``
``models``: the commands that list, show, name and remove versions
``keys``: API keys
``usage``: what each key used
``audit``: who did what
``arguments``: arguments that several commands take, and how they reach settings and registry
"""
