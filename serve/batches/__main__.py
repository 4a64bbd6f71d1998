"""`python -m serve.batches [--uds PATH]`: the process that works on batches, at the engines directly."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from contextlib import suppress
from pathlib import Path

from everlearn.errors import EverlearnError
from everlearn.logs import configure_logging
from everlearn.privacy import keep_private
from everlearn.processes.watched_process import health_endpoint, shutdown_event
from everlearn.settings import Settings, load_settings
from serve.batches.runner import Runner
from serve.batches.table import Batches
from serve.gateway.http.metrics import Metrics
from serve.gateway.limits.meter import Meter
from serve.gateway.routing.dispatch import Dispatcher
from serve.gateway.routing.router import Router

STUCK_S = 60.0


async def work(settings: Settings, uds: Path | None) -> None:
    """Until SIGTERM, or with ``uds`` the end of standard input; what is under way then is left to the next one."""
    stop = shutdown_event(follow_input=uds is not None)
    batches = Batches(settings)
    metrics = Metrics()
    router = Router(batches.database, metrics)
    meter = Meter(batches.database)
    runner = Runner(settings, batches, Dispatcher(router, metrics), meter)
    await router.refresh()
    await meter.flush()
    watching, metering = asyncio.create_task(router.watch()), asyncio.create_task(meter.run())
    try:
        async with health_endpoint(uds, lambda: (time.monotonic() - runner.turned_s < STUCK_S, {})):
            await runner.run(stop)
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await router.close()
        meter.stop()
        await metering


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m serve.batches", description="Work on batches.")
    parser.add_argument("--uds", type=Path, help="answer GET /health here, and end when standard input does")
    arguments = parser.parse_args()
    keep_private()
    try:
        settings = load_settings()
        configure_logging(settings.log_level)
        asyncio.run(work(settings, arguments.uds))
    except EverlearnError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
