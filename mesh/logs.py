"""Structured logs: one JSON object a line on standard output."""

import logging
import sys
from collections.abc import Iterable
from typing import Any

import structlog

#: Most purchases that one line names.
_NAMED_MAX = 20


def named(purchase_ids: Iterable[Any]) -> list[str]:
    """The ids of purchases that a line is about, as a line tells them (``purchase_ids=named(...)``): 20 at most."""
    return [str(each) for each, _ in zip(purchase_ids, range(_NAMED_MAX), strict=False)]


def _add_trace_ids(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A purchase's trace has the id of the purchase (mesh.tracing), in the form that tools for traces know."""
    if "purchase_id" in event:
        event["trace_id"] = str(event["purchase_id"]).replace("-", "")
    if "purchase_ids" in event:
        event["trace_ids"] = [str(each).replace("-", "") for each in event["purchase_ids"]]
    return event


def configure_logs(service: str, level: str = "INFO") -> None:
    """Sends structlog's and the standard library's log lines through one JSON renderer. Call once per process."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _add_trace_ids,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    structlog.contextvars.bind_contextvars(service=service)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger for one module."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger
