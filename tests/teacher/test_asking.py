"""How a question is asked: re-asks, missing marks, answers over the context or too long."""

from __future__ import annotations

import asyncio
import json

import pytest

from ropd_jax.teacher import (
    BlockedError,
    ChatReply,
    ConfigurationError,
    ContextError,
    MalformedError,
    Teacher,
    TransientError,
)
from ropd_jax.teacher.roles import fences, forms
from ropd_jax.teacher.roles.marks import shuffled
from ropd_jax.teacher.roles.verifier import Asking
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.teacher.traffic.retries import LimitedClient
from ropd_jax.types import Criterion, Message, Prompt, Rubric
from tests.teacher.helpers import bound, content_of, fenced
from tests.teacher.helpers import keyed as verdicts

RUBRIC = Rubric(tuple(Criterion(f"c{n}", f"criterion {n}", p) for n, p in enumerate((5, 4, 2, 1), 1)))


PROMPT = Prompt("p1", (Message("user", "Q?"),), answer="GOLD")


def rubric_text(n=4):
    rows = [{"criterion_id": f"c{i}", "category": "x", "criterion": f"k{i}", "points": 1} for i in range(1, n + 1)]
    return json.dumps({"schema_version": "ropd.rubric.v1", "rubrics": rows, "maximum_score": n})


def test_only_answers_without_a_verdict_are_asked_for_again(saying):
    texts = [f"text {i}" for i in range(4)]
    order = shuffled(texts, seed=0, key="k")
    client = saying(verdicts((1, "1111"), (3, "0000"), (4, "11")), verdicts((1, "1000"), (2, "0100")))
    teacher = Teacher(client)
    result = asyncio.run(teacher.verify(PROMPT, RUBRIC, texts, key="k"))
    assert result.scores(RUBRIC) == tuple({0: 1.0, 1: 5 / 12, 2: 0.0, 3: 4 / 12}[order.index(i)] for i in range(4))
    assert result.causes == (None,) * 4
    assert fenced(content_of(client.requests[1])) == [texts[order[1]], texts[order[3]]]
    assert teacher.stats.reasks == {"verify": 1} and teacher.stats.unscored == {}


@pytest.mark.parametrize(
    "second, cause",
    [
        (verdicts(), "missing"),
        (verdicts((1, "10")), "malformed"),
        (TransientError("x", cause="timeout"), "timeout"),
        (BlockedError("x"), "blocked"),
    ],
)
def test_what_stays_without_verdict_is_unscored_with_its_cause(saying, second, cause):
    order = shuffled(["a", "b"], seed=0, key="k")
    teacher = Teacher(saying(verdicts((1, "1111")), second))
    result = asyncio.run(teacher.verify(PROMPT, RUBRIC, ["a", "b"], key="k"))
    unscored = order[1]
    assert result.scores(RUBRIC)[unscored] is None and result.causes[unscored] == cause
    assert result.scores(RUBRIC)[order[0]] == 1.0 and result.causes[order[0]] is None
    assert teacher.stats.unscored == {cause: 1}


def test_an_unusable_reply_is_answered_once_with_what_was_wrong(saying):
    client = saying(rubric_text(3), rubric_text(5))
    teacher = Teacher(client)
    rubric = asyncio.run(teacher.induce_rubric(PROMPT, ["r"], ["a"]))
    assert len(rubric.criteria) == 5
    first, second = client.requests
    assert [m.role for m in second.messages] == ["user", "assistant", "user"]
    assert second.messages[0] == first.messages[0] and second.messages[1].content == bound(first, rubric_text(3))
    assert "3 criteria; expected 4 to 12" in second.messages[2].content
    assert teacher.stats.reasks == {"rubric": 1} and teacher.stats.failures == {}


def test_an_empty_reply_is_not_quoted_back(saying):
    client = saying("  ", rubric_text())
    asyncio.run(Teacher(client).induce_rubric(PROMPT, ["r"], ["a"]))
    assert [m.role for m in client.requests[1].messages] == ["user", "user"]


@pytest.mark.parametrize("replies", [("nonsense", "nonsense"), (rubric_text(3), "")])
def test_two_unusable_replies_are_a_typed_failure(saying, replies):
    teacher = Teacher(saying(*replies))
    with pytest.raises(MalformedError) as e:
        asyncio.run(teacher.induce_rubric(PROMPT, ["r"], ["a"]))
    assert teacher.stats.failures == {e.value.cause: 1}
    teacher = Teacher(saying("nonsense", "nonsense"))
    with pytest.raises(MalformedError):
        asyncio.run(teacher.verify(PROMPT, RUBRIC, ["a"], key="k"))
    assert teacher.stats.reasks == {"verify": 1} and teacher.stats.failures == {"malformed": 1}


def test_no_answers_need_no_call(saying):
    assert asyncio.run(Teacher(saying()).verify(PROMPT, RUBRIC, [], key="k")).passed == ()


class Narrow:
    """A verifier and rubricator with a context of ``limit`` characters of answers; passes answers with "good"."""

    def __init__(self, limit, failure=None):
        self.limit, self.failure, self.shown = limit, failure, []

    async def chat(self, request):
        blocks = fences.parse_blocks(content_of(request))
        texts = [text for label, text in blocks if label.split(" ")[0] in ("answer", "student", "reference")]
        self.shown.append(texts)
        if sum(map(len, texts)) > self.limit:
            raise ContextError("too long")
        if self.failure is not None and any("poison" in text for text in texts):
            raise self.failure
        if request.purpose == "rubric":
            rows = [{"criterion_id": f"c{i}", "category": "x", "criterion": f"k{i}", "points": 1} for i in range(1, 5)]
            reply = {"schema_version": "ropd.rubric.v1", "rubrics": rows, "maximum_score": 4}
            return ChatReply(bound(request, json.dumps(reply)))
        names = [row["criterion_id"] for row in json.loads(dict(blocks)["rubric"])]
        reply = forms.FORMS["keyed"].write(names, [["good" in text] * len(names) for text in texts], "")
        return ChatReply(bound(request, json.dumps(reply)))

    async def close(self):
        pass


def verify(client, answers, **options):
    teacher = Teacher(client, **options)
    return asyncio.run(teacher.verify(PROMPT, RUBRIC, answers, key="k")), teacher.stats


def test_answers_over_the_context_are_verified_in_parts():
    answers = [f"{'good' if i % 3 else 'bad'} answer {i} " + "x" * 100 for i in range(12)]
    client = Narrow(400)
    result, stats = verify(client, answers)
    assert result.passed == tuple(("good" in a,) * 4 for a in answers) and result.causes == (None,) * 12
    assert [len(texts) for texts in client.shown] == [12, 6, 6, 3, 3, 3, 3]
    assert stats.cut == {}


def test_an_answer_that_alone_is_over_the_context_is_cut_in_the_middle_and_counted():
    answers = ["good " + "x" * 3000, "good short", "bad short"]
    client = Narrow(1000)
    result, stats = verify(client, answers)
    assert result.passed == ((True,) * 4, (True,) * 4, (False,) * 4)
    assert "characters cut ...]" in next(t[0] for t in client.shown if len(t) == 1 and 500 < len(t[0]) <= 1000)
    assert stats.cut == {"verify": 2}  # to 1,502 characters, then to 751


def test_a_part_that_fails_leaves_only_its_own_answers_unscored():
    answers = ["good " + "x" * 90, "good " + "y" * 90, "poison " + "x" * 90, "good " + "z" * 90]
    result, _ = verify(Narrow(200, TransientError("x", cause="timeout")), answers)
    # the half with the poison fails, is sent again, and is not split further
    assert result.causes[2] == "timeout" and result.passed[2] is None
    assert sum(p is not None for p in result.passed) >= 2 and None in result.causes
    with pytest.raises(ConfigurationError):
        verify(Narrow(200, ConfigurationError("key")), answers)


def test_no_cut_helps_a_model_whose_context_is_full_without_any_answer():
    client = Narrow(-1)
    with pytest.raises(ContextError):
        verify(client, ["a" * 5000, "b"])
    assert len(client.shown) < 12


def test_a_rubric_over_the_context_is_induced_from_cut_answers():
    client = Narrow(1500)
    teacher = Teacher(client)
    rubric = asyncio.run(teacher.induce_rubric(PROMPT, ["r" * 900, "r"], ["a" * 900, "b" * 10]))
    assert len(rubric.criteria) == 4
    first, second = client.shown
    assert sum(map(len, first)) == 1811
    assert second[0].startswith("rrr") and second[0].endswith("rrr") and second[3] == "b" * 10
    assert teacher.stats.cut == {"rubric": 2}


def test_an_over_long_answer_is_cut_before_it_is_sent():
    client = Narrow(10**9)
    result, stats = verify(client, ["good" + "x" * 9996, "bad"], max_answer_chars=1000)
    shown = max(client.shown[0], key=len)
    assert 990 <= len(shown) <= 1000 and shown.startswith("good") and "\n[... 9" in shown
    assert stats.cut == {"verify": 1} and result.passed == ((True,) * 4, (False,) * 4)
    assert stats.as_metrics()["teacher/cut_verify"] == 1.0


def test_a_bound_too_small_to_show_anything_is_refused():
    with pytest.raises(ConfigurationError, match=r"teacher\.max_answer_chars is 50; expected at least 100"):
        Teacher(ScriptedClient(), max_answer_chars=50)


# ------------------------------------------------------------------------------------------------------------- cuts


class Deciding:
    """A verifier that knows which of c1..c4 each text meets, ``0110``; a text can name a fault and a criterion."""

    def __init__(self):
        self.asked = []  # (texts, criteria, sample index)

    async def chat(self, request):
        blocks = fences.parse_blocks(content_of(request))
        rubric = json.loads(next(text for label, text in blocks if label == "rubric"))
        texts = [text for label, text in blocks if label.startswith("answer")]
        names = [row["criterion_id"] for row in rubric]
        self.asked.append((texts, names, request.sample_index))
        for text in texts:
            if f"down {names[0]}" in text:
                raise TransientError("503", cause="unavailable")
        rows = [[text[int(name[1:]) - 1] == "1" for name in names] for text in texts]
        form = forms.form_shown(fences.outside(content_of(request)))
        reply = form.write(names, rows, "so")
        for n, text in enumerate(texts, 1):
            if f"lost {names[0]}" in text and not (request.sample_index and "once" in text):
                reply["answers"].pop(str(n))
        return ChatReply(bound(request, json.dumps(reply)))

    async def close(self):
        pass


TEXTS = ["0000 a", "1111 b", "0110 c", "1000 d", "0001 e"]


def decided(texts, client=None, **how):
    client = client or Deciding()
    teacher = Teacher(client, asking=Asking(**how))
    return asyncio.run(teacher.verify(PROMPT, RUBRIC, texts, key="k")), client.asked, teacher.stats


def truth(texts):
    return tuple(tuple(c == "1" for c in text[:4]) for text in texts)


@pytest.mark.parametrize("form", forms.FORMS)
@pytest.mark.parametrize(("answers", "criteria"), [(0, 0), (1, 0), (2, 0), (0, 1), (0, 3), (1, 1), (2, 3), (99, 99)])
def test_every_cut_gives_the_same_verdicts(form, answers, criteria):
    found, asked, _ = decided(TEXTS, form=form, answers_per_call=answers, criteria_per_call=criteria)
    assert found.passed == truth(TEXTS) and found.causes == (None,) * 5
    assert len(asked) == -(-5 // (answers or 5)) * -(-4 // (criteria or 4))
    assert max(len(texts) for texts, _, _ in asked) == min(answers or 5, 5)


def test_answers_are_shuffled_before_they_are_cut():
    order = shuffled(TEXTS, seed=0, key="k")
    _, asked, _ = decided(TEXTS, answers_per_call=2)
    assert [texts for texts, _, _ in asked] == [
        [TEXTS[i] for i in part] for part in (order[:2], order[2:4], order[4:])
    ]  # fmt: skip


def test_an_answer_that_lacks_one_part_is_asked_for_that_part_again_and_stays_unscored_without_it():
    texts = [*TEXTS[:2], "0110 lost c3", "1000 lost c1 once"]
    found, asked, stats = decided(texts, criteria_per_call=2)
    assert found.passed == (*truth(texts)[:2], None, truth(texts)[3]) and found.causes == (None, None, "missing", None)
    assert [a for a in asked if a[2]] == [(texts[3:], ["c1", "c2"], 1), (texts[2:3], ["c3", "c4"], 1)]
    assert stats.unscored == {"missing": 1}


def test_a_call_that_fails_leaves_only_its_own_answers_unscored():
    texts = ["0000 down c1", *TEXTS[1:]]
    found, asked, stats = decided(texts, answers_per_call=1)
    assert found.passed == (None, *truth(TEXTS[1:])) and found.causes == ("unavailable", *(None,) * 4)
    assert stats.unscored == {"unavailable": 1} and len(asked) == 6  # and one more request for the lost one


def test_a_part_of_the_rubric_that_fails_leaves_no_answer_scored():
    texts = [f"{text} down c3" for text in TEXTS]
    with pytest.raises(TransientError):
        decided(texts, criteria_per_call=2)


def test_a_wrong_key_in_one_of_many_calls_stops_the_run():
    class Refusing(Deciding):
        async def chat(self, request):
            if "0001 e" in content_of(request):
                raise ConfigurationError("no key")
            return await super().chat(request)

    for how in ({"answers_per_call": 1}, {"criteria_per_call": 1}):
        with pytest.raises(ConfigurationError, match="no key"):
            decided(TEXTS, Refusing(), **how)


def test_halves_over_the_context_work_in_each_call():
    answers = [f"{'good' if i % 3 else 'bad'} answer {i} " + "x" * 100 for i in range(12)]
    client = Narrow(400)
    result, _ = verify(client, answers, asking=Asking(answers_per_call=6, criteria_per_call=2))
    assert result.passed == tuple(("good" in a,) * 4 for a in answers) and result.causes == (None,) * 12
    assert sorted(len(texts) for texts in client.shown) == [3] * 8 + [6] * 4


def test_equal_answers_in_calls_of_their_own_are_one_request():
    inner = Deciding()
    teacher = Teacher(LimitedClient(inner), asking=Asking(answers_per_call=1))
    found = asyncio.run(teacher.verify(PROMPT, RUBRIC, ["0110 c"] * 3, key="k"))
    assert found.passed == truth(["0110"] * 3) and len(inner.asked) == 1
