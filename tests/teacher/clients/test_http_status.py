"""HTTP answers become typed errors."""

from __future__ import annotations

import email.utils

import pytest

from ropd_jax.teacher.clients.http_status import error_for_status, parse_retry_after


@pytest.mark.parametrize(
    "text, seconds",
    [("3", 3.0), ("1.5", 1.5), ("12s", 12.0), (" 7 ", 7.0), ("soon", None), ("-3", None), ("", None), (None, None),
     ("nan", None), ("9" * 400, None)],
)  # fmt: skip
def test_retry_after_values(text, seconds):
    assert parse_retry_after(text) == seconds


def test_retry_after_dates():
    now = 1_700_000_000.0
    assert parse_retry_after(email.utils.formatdate(now + 90, usegmt=True), now=now) == 90.0
    assert parse_retry_after(email.utils.formatdate(now - 90, usegmt=True), now=now) == 0.0


@pytest.mark.parametrize(
    "status, message, cause",
    [
        (400, "This model's maximum context length is 8192 tokens", "context"),
        (400, "The input token count (1300000) exceeds the maximum number of tokens allowed (1048576).", "context"),
        (413, "prompt is too long", "context"),
        (422, "bad field", "bad_request"),
        (500, "internal", "server_error"),
        (502, "bad gateway", "unavailable"),
        (504, "gateway timeout", "timeout"),
        (529, "overloaded", "overloaded"),
    ],
)
def test_causes_of_http_answers(status, message, cause):
    error = error_for_status(status, message, provider="openai", model="m")
    assert error.cause == cause and f"answered {status} for model 'm'" in str(error)
