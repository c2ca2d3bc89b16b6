"""What calls are called: the id that a request has in all logs and calls that it leads to."""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import Any

REQUEST_ID_KEY = "x-request-id"
"""The key in the metadata of calls."""

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the call that runs."""

# It goes into logs and other calls.
_ALLOWED = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)


def is_request_id(value: Any) -> bool:
    """Whether a request can be called so."""
    return isinstance(value, str) and _ALLOWED.fullmatch(value) is not None
