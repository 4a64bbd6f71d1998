"""Errors with which a training run ends on purpose."""

from everlearn.errors import EverlearnError


class Diverged(EverlearnError):
    """The loss or the gradient is no longer a number. Nothing is registered."""

    code = "diverged"


class Stopped(EverlearnError):
    """The run was asked to stop; it goes on from its checkpoint when it is started again."""

    exit_code = 130
    status = 503
    code = "stopped"
