"""The id of a request, in all logs and calls that it causes."""

import re
from contextvars import ContextVar
from typing import Any

REQUEST_ID_KEY = "x-request-id"
"""Its key in a call's metadata."""

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request id of the current call; empty if there is none."""

# Ids go into logs and other calls.
_ALLOWED = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)


def is_request_id(value: Any) -> bool:
    """Whether `value` is a valid request id: short, and of permitted characters only."""
    return isinstance(value, str) and _ALLOWED.fullmatch(value) is not None
