"""Bodies of failures: in every form, the server's message, codes, status and wait are found."""

from __future__ import annotations

import json
import random
import time

import pytest

from ropd_jax.teacher.clients.failure_body import Said, read_failure

WORDS = "the model is busy"


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": WORDS}},
        {"error": WORDS},
        {"message": WORDS},
        {"detail": WORDS},
        {"detail": [{"loc": ["body"], "msg": WORDS}]},
        {"errors": [{"code": 3046, "message": WORDS}]},
        {"title": WORDS, "status": 400},
        [{"error": {"message": WORDS}}],
        {"error": {"message": json.dumps({"error": {"message": WORDS}})}},
        {"error": json.dumps({"error": {"message": WORDS}})},
        {"error": {"message": "Provider returned error", "metadata": {"raw": WORDS}}},
        {"error": {"message": "Provider returned error", "metadata": {"raw": json.dumps({"message": WORDS})}}},
        "<html><head><style>h1 {}</style><title>the model\n is busy</title></head></html>",
        WORDS,
        "\ufeff" + json.dumps({"error": WORDS}),
    ],
)
def test_the_words_are_found_in_every_form(body):
    for sent in (body, json.dumps(body) if not isinstance(body, str) else body, None):
        if sent is not None:
            assert WORDS in read_failure(sent).message
            data = sent if isinstance(sent, str) else json.dumps(sent)
            assert WORDS in read_failure(data.encode()).message


def test_what_says_nothing_says_nothing():
    for body in (b"", "", "null", "7", "[]", "{}", "[[[]]]", None, 7, {"error": None}, {"error": {"message": ["x"]}}):
        said = read_failure(body)
        assert (said.status, said.wait) == (None, None) and said.codes == frozenset()
        assert said.message in ("", "null", "7")  # a body that is not an object is shown unchanged


def test_codes_status_and_counts():
    said = read_failure({"error": {"code": "429", "type": "Rate_Limit_Error", "n_ctx": 8, "n_prompt_tokens": "9"}})
    assert said == Said("", frozenset({"429", "rate_limit_error"}), 429, None, {"n_ctx": 8, "n_prompt_tokens": 9})
    assert read_failure({"error": {"code": True, "status": 9999}}).status is None
    assert read_failure({"error": {"message": "x", "code": 200}}).status is None


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("Please try again in 20s.", 20.0),
        ("Please try again in 9.816s. Visit https://x", 9.816),
        ("Please try again in 6ms.", 0.006),
        ("Please try again in 1m9.696s.", 69.696),
        ("Please try again in 7m12s.", 432.0),
        ("try again in 1h2m3s", 3723.0),
        ("Please retry after 45 seconds.", 45.0),
        ("Please retry your request in 2 minutes", 120.0),
        ("Please retry in 38.512s.", 38.512),
        ("retry after 500 milliseconds", 0.5),
        ("Please try again later.", None),
        ("try again in a while", None),
        ("try again in 99999999999999999999s", None),
        ("Limit 20, Used 20", None),
        ("", None),
    ],
)
def test_waits_in_words(text, seconds):
    for body in ({"error": {"message": text}}, {"error": text}, text):
        assert read_failure(body).wait == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    "value, seconds",
    [("26s", 26.0), ("12.5s", 12.5), ("0.250s", 0.25), ("1m", 60.0), (20.0, 20.0), (20, 20.0), ("soon", None),
     (-1, None), (True, None), (10**9, None), (float("nan"), None)],
)  # fmt: skip
def test_waits_in_fields(value, seconds):
    assert read_failure({"error": {"details": [{"retryDelay": value}]}}).wait == seconds
    assert read_failure({"error": "x", "estimated_time": value}).wait == seconds


def test_no_key_is_in_a_message():
    key = "sk-hostile-0123456789"
    for body in ({"error": {"message": f"key {key} is wrong"}}, f"<p>{key}</p>", [{"error": f"no {key}"}]):
        for sent in (body, json.dumps(body)):
            assert key not in read_failure(sent, key).message and "<api key>" in read_failure(sent, key).message


def test_any_body_is_read_quickly_and_raises_nothing():
    rng = random.Random(5)
    leaves = [None, "", "x", 7, -1, 1.5, True, WORDS, "429", 10**30, float("inf"), '{"error": "y"}', "[" * 5000]

    def any_value(depth):
        kind = rng.random()
        if depth == 0 or kind < 0.3:
            return rng.choice(leaves)
        if kind < 0.5:
            return [any_value(depth - 1) for _ in range(rng.randrange(4))]
        keys = ["error", "errors", "message", "detail", "details", "code", "metadata", "raw", "retryDelay", "status"]
        return {rng.choice(keys): any_value(depth - 1) for _ in range(rng.randrange(5))}

    began = time.monotonic()
    for _ in range(2000):
        body = any_value(7)
        said = read_failure(body)
        assert "\n" not in said.message and len(said.message) <= 4000
        assert said.wait is None or 0 <= said.wait < 1e12
        assert said.status is None or 400 <= said.status <= 599
    deep: dict = {}
    for _ in range(500):
        deep = {"error": deep, "message": deep}
    assert read_failure(deep).message == ""
    for text in ("<" * 200_000, "try again in " + "9" * 200_000, "try again in " + "1s " * 100_000, "[" * 200_000):
        read_failure(text)
        read_failure({"error": text})
    assert time.monotonic() - began < 20
