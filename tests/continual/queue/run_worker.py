"""`python run_worker.py [--uds PATH]`: the real worker, whose jobs' children are `small_pipeline`."""

import sys
from pathlib import Path

from continual.queue.worker import work
from everlearn.logs import configure_logging
from everlearn.settings import load_settings

CONSUMER = Path(__file__).with_name("run_consumer.py")

if __name__ == "__main__":
    settings = load_settings()
    configure_logging(settings.log_level)
    uds = Path(sys.argv[2]) if sys.argv[1:2] == ["--uds"] else None
    work(settings, uds=uds, supervised=uds is not None, consumer=[sys.executable, str(CONSUMER)])
