"""`everlearn serve`, with the tests' small engine and with little patience.

python tests/serve/run_supervisor.py [MODEL…]
"""

import os
import sys
from pathlib import Path

from everlearn.errors import EverlearnError
from everlearn.logs import configure_logging
from everlearn.settings import load_settings
from serve.supervisor import serve
from serve.watched import Patience

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

if __name__ == "__main__":
    settings = load_settings()
    configure_logging(settings.log_level)
    try:
        serve(settings, sys.argv[1:], program=lambda version, settings: ENGINE, patience=IMPATIENT)
    except EverlearnError as error:
        print(error.message, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
