"""The scripted teacher: correct solutions, discriminative criteria, verdicts computed by hand."""

from __future__ import annotations

import asyncio
import json

import pytest
import reasoning_gym

from ropd_jax.teacher import ChatRequest, ConfigurationError, Role, Teacher, TruncatedError, make_client
from ropd_jax.teacher.roles import forms, verifier
from ropd_jax.teacher.scripted import criteria, tasks
from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.types import Message, Prompt

GSM = {
    "question": "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins for "
    "her friends every day with four. She sells the remainder for $2 each. How much does she make every day?",
    "solution": "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.\n"
    "She makes 9 * 2 = $<<9*2=18>>18 every day at the farmer's market.\n#### 18",
}


def prompt(question):
    return Prompt("p", (Message("user", question),))


def teacher(**options):
    return Teacher(make_client(provider="scripted", scripted=options))


@pytest.mark.parametrize(
    "family, options",
    [
        ("chain_sum", dict(min_terms=2, max_terms=6, min_digits=1, max_digits=2)),
        ("chain_sum", dict(min_terms=4, max_terms=5, allow_negation=True)),
        ("products", dict(min_terms=2, max_terms=4)),
        ("gcd", dict(max_numbers=4)),
        ("simple_equations", {}),
    ],
)
def test_solves_reasoning_gym_problems_and_references_pass_their_own_rubric(family, options):
    data = reasoning_gym.create_dataset(family, size=60, seed=11, **options)
    for entry in data:
        worked = tasks.solve(entry["question"], tasks.AnswerKey(), lambda step: 0)
        if worked.answer == "undetermined":
            assert entry["question"].endswith("0 = 0")
            continue
        assert worked.answer == entry["answer"]
        references = [tasks.write(worked, i) for i in range(4)]
        assert all(criteria.final_answer(r) == entry["answer"] for r in references)
        rows = criteria.induce(references, ["", "Answer: 1234567"])
        assert 4 <= len(rows) <= 12
        for row in rows:
            assert all(criteria.check(row["criterion"], r) is True for r in references), row
            assert row["points"] in (1, 2, 4, 5)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_book_of_gsm_symbolic_solutions_is_used_for_references_and_rubric(seed):
    data = reasoning_gym.create_dataset("gsm_symbolic", size=60, seed=seed)
    pairs = [(e["question"], e["metadata"]["answer_cot"]) for e in data]
    answer_key = tasks.AnswerKey(pairs)
    right, own = 0, []
    for entry in data:
        references = [tasks.write(tasks.solve(entry["question"], answer_key, lambda s: 0), i) for i in range(4)]
        assert len(set(references)) == 4
        rows = criteria.induce(references, ["I do not know."])
        assert 4 <= len(rows) <= 12
        worth = sum(row["points"] for row in rows)
        for r in references:
            passed = [criteria.check(row["criterion"], r) for row in rows]
            assert None not in passed
            own.append(sum(row["points"] for row, ok in zip(rows, passed, strict=True) if ok) / worth)
        right += criteria.same(criteria.final_answer(references[0]), entry["answer"])
    assert sum(own) / len(own) > 0.98  # the references pass their own rubric
    assert right >= 58  # a few of the generator's own solutions do not end in their answer


def test_book_solutions_lose_their_annotations_and_come_in_four_layouts(tmp_path):
    path = tmp_path / "book.jsonl"
    path.write_text(json.dumps(GSM) + "\n", encoding="utf-8")
    t = teacher(answer_key=str(path))
    references = asyncio.run(t.references(prompt("  " + GSM["question"].upper() + " Do not include units.")))
    assert references[0] == (
        "Janet sells 16 - 3 - 4 = 9 duck eggs a day.\n"
        "She makes 9 * 2 = $18 every day at the farmer's market.\nAnswer: 18"
    )
    assert [r.splitlines()[-1] for r in references] == [
        "Answer: 18", "#### 18", "The answer is 18.", "The final answer is \\boxed{18}.",
    ]  # fmt: skip
    rubric = asyncio.run(t.induce_rubric(prompt(GSM["question"]), references, ["16 - 3 - 4 = 9\nAnswer: 9", "no"]))
    assert [(c.points, c.text) for c in rubric.criteria] == [
        (2, 'Contains a calculation whose result is 9 (written "= 9").'),
        (5, 'Ends with the final answer "18".'),
        (2, 'Every calculation of numbers written with "=" is correct, and there is at least one.'),
        (1, "Names its final answer exactly once, in the last line."),
    ]


def test_a_chain_sum_is_written_in_plain_running_sums(sum_prompt):
    t = teacher()
    references = asyncio.run(t.references(sum_prompt))
    assert references == ("9 + 5 = 14\n14 - 1 = 13\n13 + 3 = 16\nAnswer: 16",) * 4
    assert t.stats.duplicate_references == 3


def test_weights_follow_what_the_students_lack(sum_prompt, sum_answers):
    t = teacher()
    references = asyncio.run(t.references(sum_prompt))
    rubric = asyncio.run(t.induce_rubric(sum_prompt, references, sum_answers))
    assert [(c.points, c.text) for c in rubric.criteria] == [
        (2, 'Contains the line "9 + 5 = 14" exactly once, as a whole line.'),
        (4, 'Contains the line "14 - 1 = 13" exactly once, as a whole line.'),
        (4, 'Contains the line "13 + 3 = 16" exactly once, as a whole line.'),
        (5, 'The last line is "Answer: 16", and no other line starts with "Answer:".'),
        (1, "Every line before the last is a correct equation, and there is at least one."),
    ]
    verdicts = asyncio.run(t.verify(sum_prompt, rubric, [*sum_answers, *references], key="k"))
    assert verdicts.passed[:4] == (
        (True,) * 5,
        (True, False, False, True, True),
        (False,) * 5,
        (False,) * 5,
    )
    assert verdicts.scores(rubric) == (1.0, 8 / 16, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0)
    all_have_it = asyncio.run(t.induce_rubric(sum_prompt, references, sum_answers[:2]))
    assert [c.points for c in all_have_it.criteria] == [1, 2, 2, 5, 1]


@pytest.mark.parametrize(
    "criterion, answer, holds",
    [
        (criteria.LINE.format("2 + 7 = 9"), "12 + 7 = 9\nAnswer: 9", False),
        (criteria.LINE.format("2 + 7 = 9"), "2 + 7 = 9\n2 + 7 = 9\nAnswer: 9", False),
        (criteria.LINE.format("2 + 7 = 9"), "7 + 2 = 9\nAnswer: 9", True),
        (criteria.LINE.format("2 - 7 = -5"), "7 - 2 = -5", False),
        (criteria.LAST.format("9"), "2 + 7 = 9\nAnswer: 9\nAnswer: 9", False),
        (criteria.LAST.format("9"), "2 + 7 = 9\nAnswer: 90", False),
        (criteria.LAST.format("9"), "2 + 7 = 9\nAnswer: 9\n\n", True),
        (criteria.EQUATIONS, "Answer: 9", False),
        (criteria.EQUATIONS, "3 + 1 = 30\nAnswer: 30", False),
        (criteria.EQUATIONS, "30 = 30\nAnswer: 30", False),
        (criteria.EQUATIONS, "641 mod 595 = 46\n-4 * -3 = 12\nAnswer: 12", True),
        (criteria.FINAL.format("1234"), "so it is $1,234.00 in all", True),
        (criteria.FINAL.format("18"), "The answer is 18 dollars, not 17.", True),
        (criteria.FINAL.format("18"), "18 is near. #### 17", False),
        (criteria.FINAL.format("none"), "", False),
        (criteria.VALUE.format("24"), "He has 48/2 = $24 left", True),
        (criteria.VALUE.format("24"), "He has 24 left, 48/2 = 240", False),
        (criteria.CORRECT, "53 x €13 = €689 and 0.5 * 400 + 13 = 213", True),
        (criteria.CORRECT, "2 * 3 = 6 and 2 * 4 = 9", False),
        ("Is written with flair.", "anything", None),
    ],
)
def test_a_criterion_is_decided_from_its_wording_and_one_answer(criterion, answer, holds):
    assert criteria.check(criterion, answer) is holds


@pytest.mark.parametrize(
    "text, value",
    [("2 + 3 * 4", 14), ("(2 + 3) * -4", -20), ("7 mod 4", 3), ("1,000 / 8", 125), ("5 - -3", 8), ("0.1 + 0.2", 0.3)],
)
def test_arithmetic_is_exact(text, value):
    assert float(criteria.evaluate(text)) == value


@pytest.mark.parametrize(
    "text", ["", "2 +", "2 3", "(2", "1/0", "2**3", "__import__('os')", "9" * 500, "(" * 100, "1.2.3"]
)
def test_what_is_no_arithmetic_has_no_value(text):
    assert criteria.evaluate(text) is None


def test_long_solutions_are_merged_into_at_most_twelve_criteria():
    question = "State the final answer to the following arithmetic problem: " + " + ".join("7" * 24) + " ="
    reference = tasks.write(tasks.solve(question, tasks.AnswerKey(), lambda s: 0), 0)
    rows = criteria.induce([reference], ["x"])
    assert len(rows) == 12 and rows[10]["criterion"].startswith('The last line is "Answer: 168"')
    assert all(criteria.check(row["criterion"], reference) for row in rows)
    assert criteria.check(rows[0]["criterion"], reference.replace("7 + 7 = 14\n", "")) is False


def test_slips_are_seeded_carried_on_and_outvoted(sum_prompt):
    t = teacher(slip_rate=0.15)
    texts = [asyncio.run(t.references(Prompt("p", (Message("user", f"1 + {n} + 5 + 2 ="),)))) for n in range(40)]
    wrong = sum(r.splitlines()[-1] != f"Answer: {8 + n}" for n, refs in enumerate(texts) for r in refs)
    assert 0.2 < wrong / 160 < 0.6  # expected 1 - 0.85 ** 3 = 0.39
    again = teacher(slip_rate=0.15)
    assert asyncio.run(again.references(Prompt("p", (Message("user", "1 + 3 + 5 + 2 ="),)))) == texts[3]
    rows = criteria.induce(["1 + 3 = 4\n4 + 5 = 9\nAnswer: 9"] * 3 + ["1 + 3 = 5\n5 + 5 = 10\nAnswer: 10"], [])
    assert [r["criterion"] for r in rows][:3] == [
        'Contains the line "1 + 3 = 4" exactly once, as a whole line.',
        'Contains the line "4 + 5 = 9" exactly once, as a whole line.',
        'The last line is "Answer: 9", and no other line starts with "Answer:".',
    ]


def test_wrong_verdicts_are_flipped_at_their_rate(sum_prompt):
    answers = [f"9 + 5 = 14\n14 - 1 = {n}\nAnswer: {n}" for n in range(100)]
    right, noisy = teacher(), teacher(wrong_verdict_rate=0.2)
    references = asyncio.run(right.references(sum_prompt))
    rubric = asyncio.run(right.induce_rubric(sum_prompt, references, answers))
    a = asyncio.run(right.verify(sum_prompt, rubric, answers, key="k")).passed
    b = asyncio.run(noisy.verify(sum_prompt, rubric, answers, key="k")).passed
    flipped = sum(x != y for u, v in zip(a, b, strict=True) for x, y in zip(u, v, strict=True))
    assert 70 < flipped < 130


def test_a_rubric_of_another_author_leaves_answers_unscored_not_zero(sum_prompt):
    from ropd_jax.types import Criterion, Rubric

    rubric = Rubric(tuple(Criterion(f"c{n}", f"Is elegant in way {n}.", 1) for n in range(1, 5)))
    verdicts = asyncio.run(teacher().verify(sum_prompt, rubric, ["a", "b"], key="k"))
    assert verdicts.passed == (None, None) and verdicts.causes == ("malformed", "malformed")


def test_an_unknown_question_stops_with_a_remedy():
    with pytest.raises(ConfigurationError, match=r"cannot solve 'Who wrote Faust\?'.*teacher.scripted.answer_key") as e:
        asyncio.run(teacher().references(prompt("Who wrote Faust?")))
    assert e.value.cause == "unknown_question"


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(fault_rate=1.5), "fault_rate is 1.5"),
        (dict(latency_s=-1.0), "latency_s is -1.0"),
        (dict(answer_key="/nowhere/book.jsonl"), "/nowhere/book.jsonl"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ConfigurationError, match=words):
        ScriptedClient(**options)


@pytest.mark.parametrize("line", ["{}", '{"problem": "Q of the book?", "answer": "9 + 9 = 18\\n#### 18"}'])
def test_gsm8k_rows_are_read_as_they_are(tmp_path, line):
    path = tmp_path / "book.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    if line == "{}":
        with pytest.raises(ConfigurationError, match=r"book\.jsonl:1 lacks the strings"):
            tasks.AnswerKey.read(str(path))
    else:
        assert tasks.AnswerKey.read(str(path)).find("q of  the BOOK?") == "9 + 9 = 18\n#### 18"


@pytest.mark.parametrize("line", ["not json", '{"question": "q"}', "[1]", '{"question": 1, "solution": "s"}'])
def test_a_bad_answer_key_names_its_file(tmp_path, line):
    path = tmp_path / "book.jsonl"
    path.write_text(json.dumps(GSM) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"book\.jsonl"):
        ScriptedClient(answer_key=str(path))


def test_replies_are_a_pure_function_of_messages_and_sample_index(sum_prompt):
    request = ChatRequest("reference", sum_prompt.messages, "a", sample_index=2)
    client = ScriptedClient(slip_rate=0.5)
    first = asyncio.run(client.chat(request))
    other = ChatRequest("verify", sum_prompt.messages, "a", 1.0, 99, {"x": 1}, 2)
    assert asyncio.run(ScriptedClient(slip_rate=0.5).chat(other)) == first
    assert first.usage.input_tokens == 19 and first.usage.output_tokens == -(-len(first.text) // 4)


def test_the_token_limit_truncates(sum_prompt):
    t = Teacher(make_client(provider="scripted"), reference=Role(max_output_tokens=3))
    with pytest.raises(TruncatedError, match="max_output_tokens=3"):
        asyncio.run(t.references(sum_prompt))
    assert t.stats.failures == {"truncated": 4}


@pytest.mark.parametrize(
    ("style", "reference"),
    [
        ("full", "9 + 5 = 14\n14 - 1 = 13\n13 + 3 = 16\nAnswer: 16"),
        ("skips", "9 + 5 = 14\nAnswer: 16"),
        ("prose", "9 + 5 = 14; 14 - 1 = 13; 13 + 3 = 16. The answer is 16."),
    ],
)
def test_each_style_of_writing_passes_its_own_rubric_and_a_full_right_answer_never_fails_the_result(
    style, reference, sum_prompt, sum_answers
):
    teacher = Teacher(ScriptedClient(style=style), references_m=1)
    assert asyncio.run(teacher.references(sum_prompt)) == (reference,)
    rubric = asyncio.run(teacher.induce_rubric(sum_prompt, [reference], sum_answers))
    verdicts = asyncio.run(teacher.verify(sum_prompt, rubric, [reference, sum_answers[0]], key="k"))
    assert all(verdicts.passed[0])
    decisive = [k for k, c in enumerate(rubric.criteria) if c.points == 5]
    assert decisive and all(verdicts.passed[1][k] for k in decisive)


def test_an_unknown_style_is_named():
    with pytest.raises(ConfigurationError, match=r"'brief'; expected one of full, skips, prose"):
        ScriptedClient(style="brief")


@pytest.mark.parametrize("template", ["", "verifier_labelled.v3"])
@pytest.mark.parametrize("form", forms.FORMS)
@pytest.mark.parametrize("provider", ["scripted", "openai", "gemini"])
def test_it_answers_in_every_form_also_behind_http(provider_client, provider, form, template, sum_prompt, sum_answers):
    async def run():
        async with provider_client(provider) as client:
            plain = Teacher(client, verify=Role(template="verifier.v2"))
            asking = verifier.Asking(form, answers_per_call=3, examples=2)
            cut = Teacher(client, verify=Role(template=template), asking=asking)
            rubric = await plain.induce_rubric(sum_prompt, sum_answers[:1], sum_answers)
            return [await t.verify(sum_prompt, rubric, sum_answers, key="k") for t in (plain, cut)]

    in_one_list, in_the_form = asyncio.run(run())
    assert in_the_form == in_one_list and None not in in_the_form.passed and len(set(in_the_form.passed)) > 1


@pytest.mark.parametrize("form", [name for name in forms.FORMS if name != "by_criterion"])
@pytest.mark.parametrize("fault", ["answer_missing", "verdict_short", "wrong_index"])
def test_its_faults_break_a_reply_in_every_form(form, fault, sum_prompt, sum_answers):
    def first(request, attempt):
        asked_again = request.sample_index or len(request.messages) > 2
        return fault if request.purpose == "verify" and not asked_again else None

    teacher = Teacher(ScriptedClient(fault=first), asking=verifier.Asking(form))
    rubric = asyncio.run(teacher.induce_rubric(sum_prompt, sum_answers[:1], sum_answers))
    verdicts = asyncio.run(teacher.verify(sum_prompt, rubric, sum_answers, key="k"))
    assert None not in verdicts.passed and teacher.stats.reasks == {"verify": 1}
    assert teacher.stats.calls["verify"] == 2
