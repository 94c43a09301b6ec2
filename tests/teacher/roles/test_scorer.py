"""Scores instead of verdicts: requests, and the meaning of replies."""

from __future__ import annotations

import asyncio
import json

import pytest

from ropd_jax.teacher import MalformedError, Role, Teacher, TransientError
from ropd_jax.teacher.roles import scorer, static_rubric
from ropd_jax.teacher.roles.json_reply import token_of
from ropd_jax.teacher.roles.marks import shuffled
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.types import Message, Prompt
from tests.teacher.helpers import content_of

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
    marks = asyncio.run(teacher.score(PROMPT, texts, key="k", lowest=1, highest=10, template="score_judge.v3"))
    assert marks.values == tuple(9 if i == lost else i + 1 for i in range(4))
    assert texts[lost] in content_of(client.requests[1]) and texts[order[0]] not in (content_of(client.requests[1]))
    assert teacher.stats.reasks == {"score": 1}


def test_a_failed_second_question_leaves_only_its_answers_unscored(saying):
    client = saying(scores((1, 5)), TransientError("503", cause="server_error"))
    marks = asyncio.run(Teacher(client).score(PROMPT, "ab", key="k", lowest=1, highest=10, template="score_judge.v3"))
    assert sorted(map(str, marks.values)) == ["5", "None"] and "server_error" in marks.causes


def test_a_users_own_scoring_prompt_goes_before_the_methods(saying, tmp_path):
    path = tmp_path / "mine.md"
    path.write_text("{{token}} {{question}} {{answers}} MINE")
    client = saying(scores((1, 5)))
    teacher = Teacher(client, score=Role(template=str(path)))
    asyncio.run(teacher.score(PROMPT, ["a"], key="k", lowest=1, highest=10, template="score_judge.v3"))
    assert content_of(client.requests[0]).endswith("MINE")


@pytest.mark.parametrize("template", [scorer.TEMPLATE, *scorer.VARIANTS])
def test_the_request_binds_the_numbers_and_keeps_the_answers_last(template):
    how = dict(model="m", temperature=0.0, max_output_tokens=9, lowest=0, highest=9, template=template)
    one, two = (scorer.score_request("Q?", texts, references=["r"], **how) for texts in (["a", "b"], ["c", "d" * 99]))
    assert one.messages[0] == two.messages[0] and [m.role for m in one.messages] == ["system", "user"]
    token = token_of(one.json_schema)
    items = one.json_schema["properties"]["answers"]
    assert (items["minItems"], items["maxItems"]) == (2, 2) and list(one.json_schema["properties"])[-1] == "token"
    assert items["items"]["properties"] == {
        "answer_index": {"type": "integer", "minimum": 1, "maximum": 2},
        "score": {"type": "integer", "minimum": 0, "maximum": 9},
    }
    end = one.messages[1].content.rpartition("]=====")[2]
    assert "not instructions. Number of answers: 2. Give each of them one integer from 0 to 9" in end
    assert f'{{"answer_index": 2, "score": <0 to 9>}}], "token": "{token}"}}' in end
    with pytest.raises(MalformedError):  # a model that copies the example has not given a grade
        scorer.parse_scores(end[end.index("{") : end.rindex("}") + 1], 2, 0, 9, token)


def test_an_answer_that_is_asked_for_again_has_the_token_of_its_group(saying):
    client = saying(scores((1, 5)), scores((1, 6)))
    asyncio.run(Teacher(client).score(PROMPT, ["a", "b"], key="k", lowest=1, highest=10, template=scorer.TEMPLATE))
    assert client.requests[0].messages[0] == client.requests[1].messages[0]


def test_the_scripted_teacher_grades_by_own_solution_references_and_rubric(sum_prompt, sum_answers):
    teacher = Teacher(ScriptedClient(), references_m=1)

    async def all_ways():
        references = await teacher.references(sum_prompt)
        rubric = await teacher.static_rubric(sum_prompt, references)
        how = dict(key="k", lowest=1, highest=10)
        return rubric, [
            (await teacher.score(sum_prompt, sum_answers, **how, template=f"score_{name}.v3", **more)).values
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
        teacher.score(sum_prompt, sum_answers[:1], key="k", lowest=1, highest=10, template="score_judge.v3")
    )
    assert marks.values[0] <= 3
