"""Unusable replies: counted by role and reason, shown with a sample that is harmless in a terminal."""

from __future__ import annotations

from ropd_jax.teacher.traffic.unusable import Unusable, beginning, kind_of


def test_the_commonest_reason_of_each_role_with_a_sample():
    unusable = Unusable()
    assert unusable.table() == ""
    assert unusable.add("rubric", "3 criteria; expected 4 to 12", "{one}")
    assert not unusable.add("rubric", "points is 'x'; expected 1 to 5", "{two}")
    assert not unusable.add("rubric", "2 criteria; expected 4 to 12", "{three}")
    assert not unusable.add("verify", "429")
    assert unusable.add("verify", "no object", "yes")  # the first with a reply
    lines = unusable.table().splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["rubric", "3"], ["a", "reply"], ["verify", "2"]]
    assert [line.split()[2] for line in lines[1::2]] == ["2", "1"]
    assert "3 criteria; expected 4 to 12" in lines[1] and lines[2].endswith("a reply begins: {one}")


def test_foreign_text_is_shown_in_one_line_without_control_characters():
    assert beginning("\x1b[2J a\nb\t" + "x" * 500) == "\\x1b[2J a\\nb\\t" + "x" * (160 - 9) + "..."
    unusable = Unusable()
    unusable.add("rubric", "the key '\x1b[31m' is unknown", "\u202etext")
    assert "\x1b" not in unusable.table() and "\u202e" not in unusable.table()


def test_reasons_without_end_take_no_memory_without_end():
    unusable = Unusable()
    for n in range(2_000):
        unusable.add("rubric", "problem " + "ab"[n % 2] * n, "reply")
    assert len(unusable._examples) <= 51 and "rubric      2000  " in unusable.table()


def test_equal_problems_are_one_kind():
    token = "lacks the token; expected x"
    assert kind_of("answer_index is 7; expected 1 to 4") == kind_of("answer_index is 12; expected 1 to 8")
    assert kind_of(token) == "lacks the token"
    assert kind_of("the reply has answer 'x y'") != kind_of("the reply has no answer")
