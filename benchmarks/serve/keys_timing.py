"""Whether the time of a refusal tells anything about a key: `python -m benchmarks.serve.keys_timing`.

A real gateway is asked in turn with a key that differs from an active one in its last character, one that has nothing
in common with any, and another such one: a control that only noise tells apart. For each pair: the share of draws in
which the first took longer (Mann and Whitney 1947), 50% where nothing can be told, and how far noise moves that share.
Revoked and right keys are there to show what can be seen: who sends one has the whole secret. Finding a row takes
longer than finding none, and a right key's request goes on to its body, for which it is refused here.
"""

import http.client
import json
import os
import random
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from everlearn.registry.database import open_database
from everlearn.registry.keys import create_key, revoke_key
from everlearn.settings import Settings

ROUNDS = 3000
PAIRS = (("control", "unknown"), ("similar", "unknown"), ("revoked", "unknown"), ("right", "unknown"))


def main() -> None:
    for cached, title in ((False, "looked up each time"), (True, "from the cache of 2 s")):
        times_us = measure(ttl_s=2.0 if cached else 0.0)
        print(
            f"{title}: medians "
            + ", ".join(f"{name} {statistics.median(t):.0f} µs" for name, t in times_us.items())
        )
        for first, second in PAIRS:
            share, noise = longer(times_us[first], times_us[second])
            verdict = "nothing to tell" if abs(share - 0.5) <= noise else "told apart"
            print(f"  {first:8} longer than {second}: {share:6.1%} (50% ± {noise:.1%}): {verdict}")


def measure(ttl_s: float) -> dict[str, list[float]]:
    """Microseconds of each request, by kind of key."""
    with tempfile.TemporaryDirectory(prefix="keys") as home, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        db = open_database(Settings(home=Path(home)))
        right, _ = create_key(db, "right")
        revoked, key = create_key(db, "revoked")
        revoke_key(db, key.id)
        unknown, control = ("el-" + secrets.token_urlsafe(32) for _ in range(2))
        similar = right[:-1] + ("A" if right[-1] != "A" else "B")
        given = {
            "HOME": home,
            "SERVE__PORT": str(port),
            "SERVE__KEYS_CACHE_TTL_S": str(ttl_s),
            "LOG_LEVEL": "error",
        }
        variables = os.environ | {f"EVERLEARN_{name}": value for name, value in given.items()}
        command = [sys.executable, "-m", "serve.gateway", "--parent-pipe"]
        with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE) as gateway:
            wait_for(port)
            keys = {
                "unknown": unknown,
                "control": control,
                "similar": similar,
                "revoked": revoked,
                "right": right,
            }
            times_us = ask_in_turn(port, keys)
            assert gateway.stdin
            gateway.stdin.close()
        return times_us


def ask_in_turn(port: int, keys: dict[str, str]) -> dict[str, list[float]]:
    """Each round asks once with each key, in a new order, so that a slow moment meets all alike."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    times_us: dict[str, list[float]] = {name: [] for name in keys}
    for number in range(ROUNDS + 200):
        for name in random.sample(list(keys), len(keys)):
            headers = {"authorization": f"Bearer {keys[name]}", "content-type": "application/json"}
            began = time.perf_counter()
            connection.request("POST", "/v1/chat/completions", b"{}", headers)
            answer = connection.getresponse()
            body = answer.read()
            took_us = (time.perf_counter() - began) * 1e6
            assert answer.status == (400 if name == "right" else 401), json.loads(body)
            if number >= 200:
                times_us[name].append(took_us)
    return times_us


def longer(first: list[float], second: list[float]) -> tuple[float, float]:
    """The share of pairs in which a draw of `first` is the longer, and 2.6 standard errors of it under no difference."""
    ranked = sorted([(time_us, 0) for time_us in first] + [(time_us, 1) for time_us in second])
    ranks = sum(rank for rank, (_, group) in enumerate(ranked, 1) if group == 0)
    n, m = len(first), len(second)
    return (ranks - n * (n + 1) / 2) / (n * m), 2.6 * ((n + m + 1) / (12 * n * m)) ** 0.5


def wait_for(port: int) -> None:
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the gateway did not begin to listen")


if __name__ == "__main__":
    main()
