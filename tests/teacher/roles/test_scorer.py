"""Grades in place of verdicts, RaR's static rubric, and the ablations' prompts: what is asked, what a reply means."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from ropd_jax.teacher import ConfigurationError, MalformedError, Role, Teacher, TransientError
from ropd_jax.teacher.judge_group import Design, judge, judge_pairs
from ropd_jax.teacher.roles import scorer, static_rubric
from ropd_jax.teacher.roles.marks import shuffled
from ropd_jax.teacher.roles.templates import load
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.teacher.teacher import VARIANTS
from ropd_jax.types import Criterion, Message, Prompt, Rubric

PROMPT = Prompt("p1", (Message("user", "Q?"),))


def scores(*rows):
    answers = [{"answer_index": i, "score": s} for i, s in rows]
    return json.dumps({"schema_version": "ropd.scores.v1", "answers": answers})


def test_grades_mean_what_they_say_and_nothing_else_is_a_grade():
    marks = scorer.parse_scores(scores((1, 10), (2, "7"), (3, 0), (4, 7.5), (5, True), (7, 3), (7, 4)), 8, 1, 10)
    assert marks.values == (10, 7, None, None, None, None, None, None)
    assert marks.causes == (None, None, "malformed", "malformed", "malformed", "missing", "duplicate", "missing")
    assert scorer.parse_scores(scores((1, 0)), 1, 0, 9).values == (0,)
    for text in ("fine", scores((3, 1)), scores((0, 1)), '{"schema_version": "x", "answers": []}'):
        with pytest.raises(MalformedError):
            scorer.parse_scores(text, 2, 1, 10)


def test_answers_are_graded_shuffled_and_one_without_a_grade_is_asked_again_alone(saying):
    texts = [f"text {i}" for i in range(4)]
    order = shuffled(texts, seed=0, key="k")
    lost = order[2]
    client = saying(scores(*[(n, index + 1) for n, index in enumerate(order, 1) if index != lost]), scores((1, 9)))
    teacher = Teacher(client)
    marks = asyncio.run(teacher.score(PROMPT, texts, key="k", lowest=1, highest=10, template="score_judge.v1"))
    assert marks.values == tuple(9 if i == lost else i + 1 for i in range(4))
    assert texts[lost] in client.requests[1].messages[0].content and texts[order[0]] not in (
        client.requests[1].messages[0].content
    )
    assert teacher.stats.reasks == {"score": 1}


def test_a_failed_second_question_leaves_only_its_answers_unscored(saying):
    client = saying(scores((1, 5)), TransientError("503", cause="server_error"))
    marks = asyncio.run(Teacher(client).score(PROMPT, "ab", key="k", lowest=1, highest=10, template="score_judge.v1"))
    assert sorted(map(str, marks.values)) == ["5", "None"] and "server_error" in marks.causes


def test_a_users_own_scoring_prompt_goes_before_the_methods(saying, tmp_path):
    path = tmp_path / "mine.md"
    path.write_text("{{token}} {{question}} {{answers}} MINE")
    client = saying(scores((1, 5)))
    teacher = Teacher(client, score=Role(template=str(path)))
    asyncio.run(teacher.score(PROMPT, ["a"], key="k", lowest=1, highest=10, template="score_judge.v1"))
    assert client.requests[0].messages[0].content.endswith("MINE")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_prompt_fences_what_it_shows_and_states_its_schema(name):
    text = load(name)
    assert "{{token}}" in text and "{{question}}" in text
    assert "never an instruction" in text and re.search(r'"schema_version": "ropd\.[a-z_.]+v\d"', text)


def test_the_scripted_teacher_grades_by_own_solution_references_and_rubric(sum_prompt, sum_answers):
    teacher = Teacher(ScriptedClient(), references_m=1)

    async def all_ways():
        references = await teacher.references(sum_prompt)
        rubric = await teacher.static_rubric(sum_prompt, references)
        how = dict(key="k", lowest=1, highest=10)
        return rubric, [
            (await teacher.score(sum_prompt, sum_answers, **how, template=f"score_{name}.v1", **more)).values
            for name, more in (
                ("judge", {}),
                ("judge_references", {"references": references}),
                ("rubric", {"rubric": rubric}),
            )
        ]

    rubric, grades = asyncio.run(all_ways())
    # right and fully worked; right with one of three lines: 0.5 + 0.4 / 3 + 0.1, times 9, plus 1; two wrong ones
    assert grades[0] == grades[1] == (10, 8, 1, 1)
    assert grades[2] == (10, 7, 2, 2)
    assert {c.category for c in rubric.criteria} == {"Essential", "Important", "Optional", "Pitfall"}
    assert all(c.points == static_rubric.TENTHS[c.category] for c in rubric.criteria)


def test_a_scripted_judge_that_slips_grades_a_right_answer_down(sum_prompt, sum_answers):
    teacher = Teacher(ScriptedClient(slip_rate=1.0))
    marks = asyncio.run(
        teacher.score(sum_prompt, sum_answers[:1], key="k", lowest=1, highest=10, template="score_judge.v1")
    )
    assert marks.values[0] <= 3


def test_static_rubric_refuses_what_it_cannot_weigh():
    rows = [{"criterion_id": f"c{i}", "category": "essential", "criterion": f"k{i}"} for i in range(1, 8)]
    text = {"schema_version": "ropd.static_rubric.v1", "rubrics": rows}
    assert static_rubric.parse(json.dumps(text)).weights == (10,) * 7
    with pytest.raises(MalformedError, match="6 criteria; expected 7 to 20"):
        static_rubric.parse(json.dumps(text | {"rubrics": rows[:6]}))
    with pytest.raises(MalformedError, match=r"'Nice'.*Essential, Important, Optional, Pitfall"):
        static_rubric.parse(json.dumps(text | {"rubrics": [*rows[:6], rows[6] | {"category": "nice"}]}))


# ------------------------------------------------------------------------------------------------------ ablations


class Keeping(ScriptedClient):
    """The scripted teacher, with all that it was asked."""

    def __init__(self, **kw):
        super().__init__(**kw)
        self.asked: dict[str, list[str]] = {}

    async def chat(self, request):
        self.asked.setdefault(request.purpose, []).append(request.messages[0].content)
        return await super().chat(request)


def judged(prompt, answers, **design):
    client = Keeping()
    found = asyncio.run(judge(Teacher(client, references_m=2), prompt, answers, step=0, design=Design(**design)))
    return found, client.asked


def test_the_paper_asks_blind_with_references_and_rollouts_in_sight(sum_prompt, sum_answers):
    j, asked = judged(sum_prompt, sum_answers)
    assert "begin student 4 |" in asked["rubric"][0] and "begin reference 2 |" in asked["rubric"][0]
    assert "begin answer 6 |" in asked["verify"][0] and "wrote" not in asked["verify"][0]
    assert "Write 4 to 12 criteria" in asked["rubric"][0] and len(j.reference_passed) == 2


def test_a_verifier_that_is_not_blind_sees_the_true_authors(sum_prompt, sum_answers):
    _, asked = judged(sum_prompt, sum_answers, blind=False)
    teachers = re.search(r"The teacher wrote (\d), (\d)\.", asked["verify"][0])
    reference = "\n".join(sum_answers[0].splitlines())  # what the scripted teacher writes for a sum
    shown = re.findall(r"begin answer \d \| \w+ \]=====\n(.*?)\n=====\[ end", asked["verify"][0], re.DOTALL)
    assert all(shown[int(n) - 1] == reference for n in teachers.groups())
    assert len(re.search(r"The student wrote ([\d, ]+)\.", asked["verify"][0])[1].split(", ")) == 4


def test_without_rollouts_the_rubricator_sees_the_references_alone(sum_prompt, sum_answers):
    j, asked = judged(sum_prompt, sum_answers, see_rollouts=False)
    assert "student" not in asked["rubric"][0] and "begin reference 2 |" in asked["rubric"][0]
    assert j.lineage.answers == () and j.rewards[0] == 1.0


def test_without_references_in_the_pool_only_rollouts_are_verified(sum_prompt, sum_answers):
    j, asked = judged(sum_prompt, sum_answers, pool_references=False)
    assert "begin answer 4 |" in asked["verify"][0] and "begin answer 5 |" not in asked["verify"][0]
    assert j.reference_passed == () and len(j.passed) == 4


def test_k_is_asked_for_and_held_to(sum_prompt, sum_answers, saying):
    j, asked = judged(sum_prompt, sum_answers, size=(2, 3))
    assert "Write 2 to 3 criteria" in asked["rubric"][0] and len(j.rubric.criteria) == 3
    many = [{"criterion_id": f"c{i}", "category": "x", "criterion": f"k{i}", "points": 1} for i in range(4)]
    reply = json.dumps({"schema_version": "ropd.rubric.v1", "rubrics": many})
    client = saying(reply, reply)
    with pytest.raises(MalformedError, match="4 criteria; expected 2 to 3"):
        asyncio.run(Teacher(client).induce_rubric(PROMPT, ["r"], ["s"], size=(2, 3)))


def test_k_needs_a_prompt_that_can_say_it(saying, tmp_path):
    path = tmp_path / "mine.md"
    path.write_text("{{token}} {{question}} {{references}} {{students}} Write 4 to 12 criteria.")
    teacher = Teacher(saying(), rubric=Role(template=str(path)))
    with pytest.raises(ConfigurationError, match=r"write \{\{least\}\} and \{\{most\}\}"):
        asyncio.run(teacher.induce_rubric(PROMPT, ["r"], ["s"], size=(2, 3)))


def test_pairs_have_a_rubric_each_and_fail_alone(sum_prompt, sum_answers):
    client = Keeping(fault=lambda request, n: "server_error" if "begin student" in request.messages[0].content
                     and "Answer: 17" in request.messages[0].content and "9 + 5 = 15" not in
                     request.messages[0].content else None)  # fmt: skip
    teacher = Teacher(client, references_m=2)
    j = asyncio.run(judge_pairs(teacher, sum_prompt, sum_answers, step=0))
    assert j.causes == (None, None, "server_error", None) and j.rewards[2] is None
    assert len(client.asked["rubric"]) == 4 and len(client.asked["verify"]) == 3
    assert [p.rubric is None for p in j.parts] == [False, False, True, False]
    assert j.rewards[1] == j.parts[1].rubric.score(j.parts[1].passed[0])
    assert j.parts[0].rubric.weights != j.parts[1].rubric.weights  # each has its own contrast


def test_rubric_type_is_unchanged_by_categories():
    rubric = Rubric((Criterion("c1", "k", 10, "Essential"), Criterion("c2", "k2", 3, "Optional")))
    assert rubric.score((True, False)) == pytest.approx(1.0 / 1.3)
