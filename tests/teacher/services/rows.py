"""How services actually answer: one row per behaviour, modelled on public reports.

    Row("openrouter-429-inside-200", "OpenRouter", "200 with an error instead of choices", "BerriAI/litellm#8448",
        Answer({"error": {"message": "Provider returned error", "code": 429}}), Fails(TransientError, "rate_limited"))

``test_services.py`` sends each row's answers through the real SDKs. The documentation of the providers lists the rows
by service. ``thread`` is a public report of the behaviour, "" if the form was tested or is documented by the service.
"""

from __future__ import annotations

from ropd_jax.teacher import BlockedError, ConfigurationError, ContextError, TransientError, TruncatedError
from tests.teacher.services.forms import Row, Says
from tests.teacher.services.refusals import REFUSED, TOO_LONG, TRAFFIC
from tests.teacher.services.replies import FINISH, NO_REPLY, USAGE

GROUPS: dict[str, list[Row]] = {
    "usage": USAGE,
    "finish reasons": FINISH,
    "200 without a reply": NO_REPLY,
    "refusals": REFUSED,
    "too long": TOO_LONG,
    "traffic": TRAFFIC,
}
ROWS = [row for rows in GROUPS.values() for row in rows]
GOOGLE = ("Gemini", "Vertex")


def api_of(row: Row) -> str:
    """``gemini`` for the rows in Google's own format, ``openai`` for the others."""
    return "gemini" if row.service in GOOGLE else "openai"


def meaning(row: Row) -> str:
    """The client's outcome for the row, in a few words, for the documentation.

    >>> meaning(next(row for row in ROWS if row.name == "wait-gemini"))
    'sent again after 38 s (rate_limited)'
    """
    found = row.outcome
    if isinstance(found, Says):
        return "a reply" if found.text else "an empty reply, which its role asks for again"
    if len(row.requests) > 1 and found.type is not TransientError:
        again = f"sent again with a limit of {row.requests[1]:,} tokens"
        return again if found.type is TruncatedError else f"{again}, which fits"
    if found.type is TransientError:
        return f"sent again{f' after {found.wait:g} s' if found.wait else ''} ({found.cause})"
    return {
        BlockedError: f"no reply for this prompt ({found.cause})",
        ConfigurationError: f"the run stops ({found.cause})",
        ContextError: "asked for again in parts",
        TruncatedError: "cut off",
    }.get(found.type, f"this call fails ({found.cause})")
