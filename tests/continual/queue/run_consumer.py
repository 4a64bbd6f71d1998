"""The real consumer, whose jobs' children are `small_pipeline`."""

import sys

from continual.queue.consumer import consume
from everlearn.logs import configure_logging
from everlearn.settings import load_settings

if __name__ == "__main__":
    settings = load_settings()
    configure_logging(settings.log_level)
    sys.exit(consume(settings, module="tests.continual.queue.small_pipeline"))
