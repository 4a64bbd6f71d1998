"""Run as a child: fails with an error that only its own room knows."""

from everlearn.child import answer
from everlearn.errors import Conflict


class Taken(Conflict):
    """A conflict of this module's own."""

    code = "taken"


def work(request, progress):
    raise Taken(f"{request['seat']} is taken", param="seat")


if __name__ == "__main__":
    answer(work)
