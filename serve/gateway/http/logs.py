"""One JSON object per line on standard error. Prompts, answers and secrets are never put into an event."""

import logging
import sys
import traceback

import orjson
import structlog


def configure(level: str) -> None:
    """Write structlog's events, and warnings of the libraries' own loggers, as JSON lines."""
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(serializer=orjson.dumps),
        ],
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
        wrapper_class=structlog.make_filtering_bound_logger(number),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Forward()], level=max(number, logging.WARNING), force=True)


def where(error: BaseException) -> str:
    """The type and place of an unexpected error, without its message, which may quote a request."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return f"{type(error).__name__} at " + " < ".join(f"{f.filename}:{f.lineno}" for f in reversed(frames))


class _Forward(logging.Handler):
    """Forwards the standard library's log records (uvicorn, asyncio, aiohttp) to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        place = where(error) if error else None
        structlog.get_logger().log(record.levelno, record.getMessage(), logger=record.name, place=place)
