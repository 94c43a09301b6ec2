"""The budget: cost by role and step, caps, spending that survives a kill."""

from __future__ import annotations

import asyncio

import pytest

from ropd_jax.teacher import (
    Budget,
    BudgetError,
    Caps,
    ChatReply,
    ChatRequest,
    ConfigurationError,
    Tape,
    TapedClient,
    TruncatedError,
    Usage,
    at_step,
    make_client,
)
from ropd_jax.teacher.traffic.budget import MeteredClient, dollars, most_of
from ropd_jax.types import Message


def request(purpose="verify", model="gpt-4.1", index=0):
    return ChatRequest(purpose, (Message("user", "x"),), model, sample_index=index)


class Using:
    """A client whose replies (or failures) have a given usage."""

    def __init__(self, *usages):
        self.usages = list(usages)

    async def chat(self, request):
        usage = self.usages.pop(0)
        if isinstance(usage, TruncatedError):
            raise usage
        return ChatReply("ok", usage=usage)

    async def close(self):
        pass


def metered(budget, *usages, provider="openai", base_url=""):
    return MeteredClient(Using(*usages), budget, provider=provider, base_url=base_url)


def run(client, *requests):
    async def all_of_them():
        return [await client.chat(r) for r in requests]

    return asyncio.run(all_of_them())


def test_gemini_bills_thoughts_that_are_not_among_the_candidates():
    from google.genai import types

    from ropd_jax.teacher.clients.gemini import _usage

    said = types.GenerateContentResponseUsageMetadata(
        prompt_token_count=100, candidates_token_count=10, thoughts_token_count=90, cached_content_token_count=40
    )
    assert _usage(said) == Usage(100, 100, 90, 40)
    only_thought = types.GenerateContentResponseUsageMetadata(prompt_token_count=100, thoughts_token_count=90)
    assert _usage(only_thought) == Usage(100, 90, 90, None)
    assert _usage(types.GenerateContentResponseUsageMetadata(prompt_token_count=100)).output_tokens is None


def test_cost_by_role_and_step():
    budget = Budget()
    client = metered(budget, Usage(1_000_000, 0), Usage(0, 1_000_000), Usage(500_000, 0))
    asyncio.run(at_step(0, client.chat(request("reference"))))
    asyncio.run(at_step(1, client.chat(request("verify"))))
    asyncio.run(at_step(1, client.chat(request("reference"))))
    metrics = budget.as_metrics(1)
    assert metrics["teacher/cost_usd"] == pytest.approx(2 + 8 + 1)
    assert metrics["teacher/cost_usd_reference"] == pytest.approx(3)
    assert metrics["teacher/step_cost_usd"] == pytest.approx(9)
    assert budget.as_metrics(0)["teacher/step_cost_usd"] == pytest.approx(2)
    assert (metrics["teacher/spent_calls"], metrics["teacher/spent_tokens"]) == (3, 2_500_000)


def test_a_model_without_a_price_costs_an_unknown_amount_never_nothing():
    budget = Budget()
    run(metered(budget, Usage(10, 10), Usage(10, 10)), request(), request(model="nobody-knows"))
    metrics = budget.as_metrics()
    assert metrics["teacher/cost_usd"] is None and metrics["teacher/cost_usd_verify"] is None
    assert metrics["teacher/unpriced_calls"] == 1
    assert dollars(None) == "unknown cost"


def test_unreported_tokens_are_counted_and_bounded():
    budget = Budget()
    run(metered(budget, Usage(), Usage(1_000_000, 0), Usage(100, None)), *[request()] * 3)
    total, metrics = budget.total(), budget.as_metrics()
    assert (total.unmetered, total.unpriced, total.tokens) == (2, 0, 1_000_100)
    assert total.usd == pytest.approx(2.0)  # known values are exact
    # gpt-4.1 costs 2 and 8 dollars per million. The request has 1 byte, 64 template tokens and a limit of 4,096.
    assert total.unmetered_tokens == (65 + 4096) + 4096
    assert total.unmetered_usd == pytest.approx((2 * 65 + 8 * 4096 + 2 * 100 + 8 * 4096) / 1e6)
    assert metrics["teacher/cost_usd"] == pytest.approx(total.usd + total.unmetered_usd)
    assert metrics["teacher/unmetered_calls"] == 2 and metrics["teacher/unpriced_calls"] == 0


def test_the_bound_holds_for_any_text():
    text = "\u4f60\U0001f600\ud800 a" * 50
    most = most_of(ChatRequest("verify", (Message("user", text),), "m", None, 7, {"type": "object"}))
    assert most.input_tokens >= len(text.encode("utf-8", "surrogatepass")) and most.output_tokens == 7


def test_one_unmetered_reply_does_not_end_a_run_with_a_cap():
    client = metered(Budget(Caps(usd=10, tokens=10**6)), Usage(), Usage(100, 10), Usage(100, 10))
    run(client, request(), request(), request())


def test_a_truncated_reply_is_paid_for():
    budget = Budget()
    client = metered(budget, TruncatedError("cut", usage=Usage(0, 1_000_000)))
    with pytest.raises(TruncatedError):
        run(client, request())
    assert budget.total().cost_usd == pytest.approx(8.0)


def test_the_scripted_teacher_is_free():
    budget = Budget(Caps(usd=0.01))
    budget.require_price("verify", "scripted", "scripted", "")
    run(metered(budget, Usage(), Usage(10**9, 10**9), provider="scripted"), request(), request())
    assert budget.total().cost_usd == 0.0


def test_what_the_tape_answers_costs_nothing(tmp_path):
    budget, tape = Budget(), Tape(tmp_path / "tape.sqlite")
    client = TapedClient(lambda: metered(budget, Usage(1000, 10)), tape, mode="record", provider="openai")
    run(client, request(), request(), request())
    assert (budget.total().calls, budget.total().tokens) == (1, 1010)
    tape.close()


def test_every_try_counts():
    budget, faults = Budget(Caps(calls=3)), iter(["unavailable", "rate_limited", None, None])

    options = {"fault": lambda r, attempt: next(faults)}
    client = make_client(provider="scripted", scripted=options, attempts=5, max_wait_s=0.01, budget=budget)
    from ropd_jax.teacher.roles.references import reference_request

    ask = reference_request(
        "What is 1 + 2 =", model="scripted", temperature=0.0, max_output_tokens=1000, sample_index=0
    )
    run(client, ask)
    assert budget.total().calls == 3
    with pytest.raises(BudgetError, match="calls=3 is reached"):
        run(client, ask)


@pytest.mark.parametrize(
    ("caps", "passes"), [(Caps(calls=2), 2), (Caps(tokens=300_000), 3), (Caps(usd=0.3), 2), (Caps(), 5)]
)
def test_at_a_cap_nothing_more_is_sent(caps, passes):
    budget = Budget(caps)
    client = metered(budget, *[Usage(100_000, 0)] * 5)  # 0.2 dollars per call
    for _ in range(passes):
        run(client, request())
    if passes < 5:
        with pytest.raises(BudgetError, match=r"is reached. Spent: .* calls, .* tokens, \$0") as error:
            run(client, request())
        assert "verify" in str(error.value) and "larger teacher.budget" in str(error.value)
        assert isinstance(error.value, ConfigurationError)  # stops the run
    assert budget.total().calls == passes


def test_a_cap_in_dollars_needs_prices():
    budget = Budget(Caps(usd=5))
    with pytest.raises(ConfigurationError, match=r"usd is 5, but no price is known for verify's model 'x'.*prices"):
        budget.require_price("verify", "openai", "x", "")
    Budget(Caps(tokens=5)).require_price("verify", "openai", "x", "")


def test_tokens_that_are_never_reported_reach_a_cap_by_their_bound():
    client = metered(Budget(Caps(tokens=10_000)), *[Usage()] * 9)
    with pytest.raises(BudgetError, match=r"tokens=10000 is reached.*3 replies without token counts.*budget.calls"):
        run(client, *[request()] * 9)


def test_a_cap_that_cannot_be_checked_ends_the_run():
    client = metered(Budget(Caps(usd=1)), *[Usage(1, 1)] * 2)
    run(client, request(model="nobody-knows"))
    with pytest.raises(BudgetError, match=r"1 calls is unknown.*budget.usd cannot be checked.*budget.calls"):
        run(client, request())


def test_a_negative_cap_is_refused():
    with pytest.raises(ConfigurationError, match=r"teacher.budget.usd is -1"):
        Caps(usd=-1)


def test_the_spending_is_part_of_the_state():
    budget = Budget(Caps(calls=2))
    run(metered(budget, Usage(10, 5, 3, 2), Usage(10, 5)), request(), request("rubric"))
    again = Budget(Caps(calls=2))
    again.restore(budget.state())
    assert again.roles == budget.roles
    with pytest.raises(BudgetError):
        run(metered(again, Usage(1, 1)), request())


def test_what_was_spent_after_the_last_checkpoint_is_not_forgotten(tmp_path):
    budget = Budget(path=tmp_path / "spent.json")
    run(metered(budget, Usage(10, 5)), request())
    state = budget.state()  # the checkpoint
    run(metered(budget, Usage(10, 5), Usage(10, 5)), request("rubric"), request())
    budget.save()
    again = Budget(path=tmp_path / "spent.json")
    again.restore(state)
    assert again.roles == budget.roles and again.total().calls == 3


def test_a_damaged_record_of_the_spending_is_reported(tmp_path):
    (tmp_path / "spent.json").write_text('{"verify": {"calls": ')
    with pytest.raises(ConfigurationError, match=r"spent.json' is damaged.*delete it"):
        Budget(path=tmp_path / "spent.json")
