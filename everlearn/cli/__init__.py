"""The command line. In reading order:

``commands``: the program, the table of commands, errors and exit codes
``installation``: ``everlearn config``, ``doctor`` and ``version``
``import_model``: ``everlearn import``
``models``: the commands that list, show, name and remove versions
``keys``: API keys
``usage``: what each key used
``audit``: who did what
``arguments``: arguments that several commands take, and how they reach settings and registry
"""


def main() -> None:
    """Entry point of the program ``everlearn``."""
    from everlearn.cli.commands import app
    from everlearn.privacy import keep_private

    keep_private()
    app()
