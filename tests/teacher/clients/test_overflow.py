"""Requests that are too long: the servers' messages, and the output that would have fitted."""

from __future__ import annotations

import random

import pytest

from ropd_jax.teacher.clients.overflow import is_overflow, most_output, room_for_output

# Messages for a context of L tokens that is too small for P tokens of prompt and M of output.
FORMS = {
    "openai": "This model's maximum context length is {L} tokens. However, you requested {T} tokens ({P} in the "
    "messages, {M} in the completion).",
    "completions": "This model's maximum context length is {L} tokens, however you requested {T} tokens ({P} in your "
    "prompt; {M} for the completion).",
    "vllm": "'max_tokens' or 'max_completion_tokens' is too large: {M}. This model's maximum context length is {L} "
    "tokens and your request has {P} input tokens ({M} > {L} - {P}).",
    "sglang": "Requested token count exceeds the model's maximum context length of {L} tokens. You requested a total "
    "of {T} "
    "tokens: {P} tokens from the input messages and {M} tokens for the completion.",
    "tgi": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= {L}. Given: {P} `inputs` tokens and "
    "{M} `max_new_tokens`",
    "anthropic": "input length and `max_tokens` exceed context limit: {P} + {M} > {L}, decrease input length",
    "moonshot": "Your request exceeded model token limit: {L} (requested: {T})",
    "groq": "Request too large for model `m` on tokens per minute (TPM): Limit {L}, Requested {T}, please reduce",
}


@pytest.mark.parametrize("form", FORMS)
def test_the_room_is_what_the_context_leaves_next_to_the_prompt(form):
    rng = random.Random(form)
    for _ in range(200):
        context, limit = rng.randrange(500, 200_000), rng.randrange(1, 50_000)
        prompt = rng.randrange(1, 2 * context)
        message = FORMS[form].format(L=context, P=prompt, M=limit, T=prompt + limit)
        assert is_overflow(400, message)
        expected = context - prompt if context > prompt else None
        assert room_for_output(message, limit) == expected


def test_an_estimate_keeps_a_margin():
    message = ("This endpoint's maximum context length is 32768 tokens. However, you requested about 36768 tokens "
               "(28768 of text input, 8000 in the output).")  # fmt: skip
    assert room_for_output(message, 8000) == 4000 - 80


def test_numbers_with_commas_and_fields():
    message = (
        "maximum context length is 131,072 tokens. However, you requested 1 tokens (100,000 in the messages, 1 ..."
    )
    assert room_for_output(message.replace("requested 1 tokens", "requested 140000 tokens"), 1) == 31_072
    assert room_for_output("too long", 100, {"n_ctx": 4096, "n_prompt_tokens": 3000}) == 1096
    assert room_for_output("too long", 100, {"n_ctx": 4096, "n_prompt_tokens": 5000}) is None
    assert room_for_output("token limit: 8192 (requested: 9000)", 0) is None  # the request's own limit is unknown
    assert room_for_output("maximum context length is 8192 tokens", 100) is None


@pytest.mark.parametrize(
    "status, message",
    [
        (429, "Too many tokens, please wait before trying again."),
        (400, "Too many tokens, please wait before trying again."),
        (429, "Rate limit reached for m on tokens per min (TPM): Limit 10000, Used 8554, Requested 3082."),
        (429, "Tokens per minute limit exceeded - too many tokens processed."),
        (429, "This request would exceed the rate limit of 40,000 input tokens per minute"),
        (503, "the context size is being changed"),
        (500, "context deadline exceeded"),
        (500, "context canceled"),
        (400, "response_format json_schema is not supported"),
        (400, "Invalid value for 'temperature'"),
        (401, "maximum context length"),
    ],
)
def test_what_is_not_about_the_length(status, message):
    assert not is_overflow(status, message)


@pytest.mark.parametrize(
    "message, most",
    [
        ("max_tokens is too large: 5000. This model supports at most 4096 completion tokens, whereas you provided "
         "5000.",
         4096),
        ("max_tokens: 100000 > 64000, which is the maximum allowed number of output tokens for m", 64000),
        ("<400> InternalError.Algo.InvalidParameter: Range of max_tokens should be [1, 8192]", 8192),
        ("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]", 8192),
        ("`max_tokens` must be less than or equal to `32768`, the maximum value for `max_tokens` is less than the "
         "`context_window` for this model", 32768),
        ("max_tokens for preview model `m` must be less than or equal to 8000", 8000),
        ("The maximum tokens you requested exceed the model limit of 4096. Try again with a lower value", 4096),
        ("it has a maxOutputTokens value of 100000 but the supported range is from 1 (inclusive) to 65537 (exclusive).",
         65536),
        ("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
         None),
        ("This model's maximum context length is 8192 tokens", None),
    ],
)  # fmt: skip
def test_the_largest_output_that_a_model_allows(message, most):
    assert most_output(message) == most
