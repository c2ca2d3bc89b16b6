"""The id of a request, in all logs and calls that it leads to."""

import re
from contextvars import ContextVar
from typing import Any

REQUEST_ID_KEY = "x-request-id"
"""The key in the metadata of a call."""

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the current call; empty without one."""

# Ids go into logs and other calls.
_ALLOWED = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)


def is_request_id(value: Any) -> bool:
    """Whether `value` may be an id: short and plain."""
    return isinstance(value, str) and _ALLOWED.fullmatch(value) is not None
