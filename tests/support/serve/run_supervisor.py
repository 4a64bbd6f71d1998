"""`everlearn serve`, with the tests' small engine and with little patience; with REAL_ENGINE, that of the version.

python tests/support/serve/run_supervisor.py [MODEL…]
"""

import os
import sys
from pathlib import Path

from everlearn.errors import EverlearnError
from everlearn.logs import configure_logging
from everlearn.registry.registry import Version
from everlearn.settings import Settings, load_settings
from serve.engines.programs import program
from serve.supervisor.supervisor import serve
from serve.supervisor.watched import Patience

ENGINE = [sys.executable, str(Path(__file__).with_name("fake_engine.py"))]
IMPATIENT = Patience(
    start_s=float(os.environ.get("IMPATIENT_START_S", "60")),
    warm_up_s=5,
    hung_s=5,
    poll_s=0.1,
    settled_s=5,
    quick_crashes=3,
    backoff_s=0.1,
    backoff_max_s=1,
    notice_s=1,
    stop_s=3,
)


def small(version: Version, settings: Settings) -> list[str]:
    return ENGINE


if __name__ == "__main__":
    settings = load_settings()
    configure_logging(settings.log_level)
    try:
        real = "REAL_ENGINE" in os.environ
        health = Path(os.environ["HEALTH_SOCKET"]) if "HEALTH_SOCKET" in os.environ else None
        serve(settings, sys.argv[1:], program=program if real else small, patience=IMPATIENT, health=health)
    except EverlearnError as error:
        print(error.message, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
