"""The teacher index: the official vectors, lines with any content, kills at any byte, coverage."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from ropd_jax.teacher import ConfigurationError, Role, Teacher
from ropd_jax.teacher.roles.references import Reference
from ropd_jax.teacher.tape.reference_index import IndexRow, IndexWriter, TeacherIndex, prompt_hash, read_index
from ropd_jax.types import Message, Prompt

QUESTION = (Message("user", "Q?"),)
SHA = prompt_hash(QUESTION)


def official(version=2, **changes):
    row = {
        "schema_version": f"ropd.teacher_index.v{version}",
        "uid": "u1",
        "raw_prompt_hash": SHA,
        "teacher_fingerprint": {"model": "gpt", "timeout_seconds": 90},
    }
    row |= {"teacher_answer": " a "} if version == 1 else {"teacher_answers": [" a ", "b", "c"]}
    return {k: v for k, v in (row | changes).items() if v is not ...}


def written(tmp_path, *rows):
    path = tmp_path / "index.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def answers(index):
    return [row.answers for row in index]


def test_prompt_hashes_are_the_official_ones():
    assert prompt_hash("Q?").startswith("bd2e2614803f2b08")
    assert prompt_hash([{"role": "user", "content": "Q?"}]).startswith("bb4a9106812c4259")
    assert prompt_hash([{"content": "Q?", "role": "user"}]) == SHA == prompt_hash(QUESTION)


@pytest.mark.parametrize(
    "row, count, expected",
    [
        (official(1), 1, ("a",)), (official(1), None, ("a",)), (official(), 2, ("a", "b")),
        (official(), None, ("a", "b", "c")), (official(uid=17), 1, ("a",)),
    ],
)  # fmt: skip
def test_rows_of_both_versions_are_read(tmp_path, row, count, expected):
    assert answers(read_index(written(tmp_path, row), count=count)) == [expected]


@pytest.mark.parametrize(
    "row, count, message",
    [
        (official(1), 4, "1 references; expected at least 4"),
        (official(teacher_answers=["a", " "]), None, "an answer is blank"),
        (official(teacher_answers=["a", 3]), None, "an answer is blank or not a string"),
        (official(teacher_answers=[]), None, "an empty one"),
        (official(teacher_answers="a"), None, "not a list"),
        (official(1, teacher_answer=...), None, "blank or not a string"),
        (official(schema_version=...), None, "schema_version is None"),
        (official(schema_version="ropd.teacher_index.v3"), None, "v3'"),
        (official(raw_prompt_hash="abc"), None, "raw_prompt_hash is 'abc'"),
        (official(uid=...), None, "uid is None"),
        (official(uid=True), None, "uid is True"),
        (official(teacher_fingerprint="x"), None, "teacher_fingerprint is a str"),
        ([1], None, "a list"),
        (official(), 0, "0 references requested"),
    ],
)
def test_a_wrong_row_is_reported_with_its_line(tmp_path, row, count, message):
    good = official(uid="other", teacher_answers=list("abcd"))
    with pytest.raises(ConfigurationError, match=message) as e:
        read_index(written(tmp_path, good, row), count=count)
    assert count == 0 or "index.jsonl:2: " in str(e.value)


def test_a_second_row_for_one_prompt_is_an_error(tmp_path):
    with pytest.raises(ConfigurationError, match=r"index\.jsonl:2: a second row with uid 'u1'"):
        read_index(written(tmp_path, official(), official(1)))


def test_a_fingerprint_must_be_equal_and_90_equals_90_0(tmp_path):
    path = written(tmp_path, official())
    assert len(read_index(path, fingerprint={"model": "gpt", "timeout_seconds": 90.0})) == 1
    with pytest.raises(ConfigurationError, match="model is 'gpt', the config has 'gpt-5'"):
        read_index(path, fingerprint={"model": "gpt-5", "timeout_seconds": 90})


def test_answers_with_any_line_end_of_unicode_survive(tmp_path):
    texts = tuple(f"a{c}b" for c in "\u2028\u2029\x85\x0b\x0c\x1c\r\n") + ("half \ud83d", "\N{GRINNING FACE} ü")
    with IndexWriter(tmp_path / "index.jsonl") as writer:
        writer.add(IndexRow("u", SHA, texts, {"model": "m"}))
        writer.add(IndexRow("v", SHA, ("x",), {"model": "m"}))
    assert answers(read_index(tmp_path / "index.jsonl")) == [texts, ("x",)]
    # and for readers that use str.splitlines, as the official release does
    assert len((tmp_path / "index.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    raw = official(teacher_answers=["a\u2028b"])
    assert answers(read_index(written(tmp_path, raw))) == [("a\u2028b",)]


def test_a_kill_at_any_byte_loses_at_most_the_row_being_written(tmp_path):
    rows = [IndexRow(f"u{i}", SHA, (f"answer {i}\u2028\N{GRINNING FACE}",), {"model": "m"}) for i in range(4)]
    whole = "".join(row.line() for row in rows).encode()
    path = tmp_path / "index.jsonl"
    for size in random.Random(0).sample(range(len(whole) + 1), 60):
        path.write_bytes(whole[:size])
        complete = whole[:size].count(b"\n")
        with IndexWriter(path) as writer:
            there = [row.uid for row in writer.index]
            assert there in ([f"u{i}" for i in range(complete)], [f"u{i}" for i in range(complete + 1)])
            for row in rows[len(there) :]:
                writer.add(row)
        assert path.read_bytes() == whole, size


def test_a_reader_ignores_a_torn_last_line_and_no_other(tmp_path):
    path = written(tmp_path, official())
    line = path.read_text()
    path.write_text(line + '{"schema_ver')
    assert len(read_index(path)) == 1
    path.write_text('{"schema_ver\n' + line)
    with pytest.raises(ConfigurationError, match=r"index\.jsonl:1: not JSON"):
        read_index(path)


def test_a_prompt_is_found_by_uid_and_hash_or_by_the_hash_only():
    rows = [IndexRow("u1", SHA, ("one",), {}), IndexRow("u2", prompt_hash("R?"), ("two",), {})]
    index = TeacherIndex(rows)
    assert index.find(Prompt("u1", QUESTION)).answers == ("one",)
    assert index.find(Prompt("elsewhere", QUESTION)).answers == ("one",)
    assert index.find(Prompt("u2", (Message("user", "R?"),))).answers == ("two",)  # hashed as a plain string
    assert index.find(Prompt("u1", (Message("user", "S?"),))) is None  # an equal id is not enough


def test_missing_references_are_counted_and_the_command_named(tmp_path):
    path = written(tmp_path, official(), official(uid="u2", raw_prompt_hash=prompt_hash("R?"), teacher_answers=["x"]))
    prompts = [Prompt("u1", QUESTION), *(Prompt(f"u{i}", (Message("user", t),)) for i, t in ((2, "R?"), (3, "S?")))]
    teacher = Teacher(None, references_m=3, index=read_index(path))
    teacher.check_references(prompts[:1])
    with pytest.raises(ConfigurationError) as e:
        teacher.check_references(prompts)
    assert "lacks references for 2 of 3 prompts (1 have fewer than teacher.references=3; 'u2', 'u3')" in str(e.value)
    assert f"ropd collect-references --config FILE --out {path}" in str(e.value)


def test_a_teacher_with_an_index_asks_for_no_references(tmp_path, saying):
    row = IndexRow("p", SHA, ("a", "b", "c"), {"model": "x", "models": ["x", "y"]})
    client = saying()
    teacher = Teacher(client, references_m=3, index=TeacherIndex([row]), reference=Role("other"))
    samples = asyncio.run(teacher.reference_samples(Prompt("p", QUESTION)))
    assert samples == (Reference("a", "x"), Reference("b", "y"), Reference("c", "x"))
    assert client.requests == [] and asyncio.run(teacher.references(Prompt("p", QUESTION))) == ("a", "b", "c")


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"cannot be read \(No such file or directory\).*ropd collect-references"
    ):
        read_index(tmp_path / "none.jsonl")
