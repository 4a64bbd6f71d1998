"""Run as a child: fails with an error that only its own room knows."""

from everlearn.errors import Conflict
from everlearn.processes.child import answer


class Taken(Conflict):
    """A conflict of this module's own."""

    code = "taken"


def work(request, progress):
    raise Taken(f"{request['seat']} is taken", param="seat")


if __name__ == "__main__":
    answer(work)
