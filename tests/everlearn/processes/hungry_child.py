"""Run as a child: takes what a hostile file would make its reader take."""

import os
import time

from everlearn.processes.child import answer


def work(request, progress):
    progress("eating", 0.5)
    match request["do"]:
        case "eat":
            return {"bytes": len(bytearray(request["bytes"]))}
        case "sleep":
            time.sleep(600)
        case "spin":  # one call that never lets go of the interpreter
            10 ** (10**9)
        case "abort":
            os.abort()
        case "raise":
            raise KeyError("x")


if __name__ == "__main__":
    answer(work)
