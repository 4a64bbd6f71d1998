"""Structured logs on stderr, so that stdout carries answers alone."""

from __future__ import annotations

import logging
import sys

import structlog

from everlearn.settings import LogLevel


def configure_logging(level: LogLevel) -> None:
    """Coloured lines at a terminal, one JSON object a line elsewhere."""
    terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # the one of the moment
        cache_logger_on_first_use=False,
    )
