"""The recommendation follows from the figures and their intervals, and never claims more than they allow."""

from __future__ import annotations

import copy

from ropd_jax.calibration.advice import compare, recommend


def estimate(value, low=None, high=None, n=100):
    return {"value": value, "low": low, "high": high, "n": n}


UNKNOWN = estimate(None, n=0)
MEASURED = {
    "accuracy": estimate(0.8, 0.75, 0.85), "kappa": estimate(0.6, 0.5, 0.7),
    "sensitivity": estimate(0.8, 0.7, 0.9), "specificity": estimate(0.8, 0.7, 0.9),
}  # fmt: skip
REPORT = {
    "questions": 42,
    "stopped": None,
    "overall": MEASURED,
    "kinds": {},
    "answer_kinds": {},
    "auc": {"within": UNKNOWN},
    "bias": {
        "position": UNKNOWN, "length": {"difference": UNKNOWN}, "style": {"difference": UNKNOWN}, "halo": UNKNOWN,
    },
    "flips": UNKNOWN,
    "unscored": {"share": 0.0, "causes": {}},
    "traffic": {"per_1000_verdicts": {"input_tokens": 1000.0, "output_tokens": 100.0}},
}  # fmt: skip


def advice(**changes):
    report = copy.deepcopy(REPORT)
    for path, value in changes.items():
        *way, last = path.split("__")
        place = report
        for key in way:
            place = place[key]
        place[last] = value
    return recommend(report)


def test_the_first_sentence_is_by_kappa():
    assert advice() == ["You can train with this verifier; expect about 20 % wrong verdicts."]
    usable = advice(overall__kappa=estimate(0.5, 0.4, 0.6))
    assert usable == ["You can train with this verifier if you are careful; expect about 20 % wrong verdicts."]
    assert advice(overall__kappa=estimate(0.2, 0.1, 0.3))[0].startswith("The verifier is too weak for training")
    assert "cannot be distinguished from chance" in advice(overall__kappa=estimate(0.2, -0.1, 0.5))[0]
    few = advice(overall__kappa=estimate(0.9, -0.1, 1.0), questions=3)
    assert few[0].startswith("With so few questions, the verdicts cannot be distinguished from chance")
    assert advice(overall__kappa=UNKNOWN)[0].startswith("All verdicts are the same")
    none = advice(overall__accuracy=UNKNOWN, unscored={"share": 1.0, "causes": {"malformed": 3}})
    assert none == [
        "Do not train with this verifier: no verdict could be read (causes: malformed). Try another form or another "
        "model, and check that the server accepts a JSON schema."
    ]


def test_a_kind_is_named_only_if_its_interval_allows_it():
    kinds = {
        "final_result": {"kappa": estimate(0.9, 0.8, 1.0)},
        "no_error": {"kappa": estimate(0.1, 0.0, 0.3)},
        "form": {"kappa": estimate(0.3, 0.0, 0.7)},  # too wide
        "method": {"kappa": UNKNOWN},
    }
    said = advice(kinds=kinds)
    assert "Reliable: final result." in said
    assert any(s.startswith("Not reliable: absence of an error;") for s in said) and len(said) == 3


def test_biases_with_0_in_their_interval_are_not_mentioned():
    assert len(advice(bias__position=estimate(-0.2, -0.5, 0.1), flips=estimate(0.01, 0.0, 0.02))) == 1
    assert len(advice(bias__style={"difference": estimate(0.01, 0.005, 0.015)})) == 1  # certain, but tiny
    said = advice(bias__position=estimate(-0.2, -0.3, -0.1), bias__length={"difference": estimate(0.1, 0.05, 0.2)},
                  bias__halo=estimate(0.3, 0.2, 0.4), flips=estimate(0.1, 0.05, 0.2))  # fmt: skip
    assert said[1].startswith("Earlier positions get more true verdicts (20 % from end to end): use one answer")
    assert said[2].startswith("Longer answers get 10 % more true verdicts")
    assert said[3].startswith("About 30 % of the answers get the same verdict on all")
    assert said[4].endswith("10 % of the verdicts.")


def test_strict_and_lenient_need_intervals_apart():
    up, down = estimate(0.9, 0.85, 0.95), estimate(0.6, 0.5, 0.7)
    assert advice(overall__sensitivity=up, overall__specificity=down)[1].startswith("It is lenient")
    assert advice(overall__sensitivity=down, overall__specificity=up)[1].startswith("It is strict")


def test_hostile_answers_unread_answers_and_small_samples():
    hostile = {"hostile": {"specificity": estimate(0.3, 0.2, 0.5)}}
    assert advice(answer_kinds=hostile)[1] == (
        "Hostile answers work: 70 % of the criteria that they do not meet are judged true."
    )
    unread = {"share": 0.1, "causes": {"malformed": 2, "timeout": 5}}
    assert advice(unscored=unread)[1] == "10 % of the answers got no verdict (most often: timeout)."
    assert advice(questions=5)[1].startswith("Only 5 questions were used")
    within = {"within": estimate(0.55, 0.4, 0.7)}
    assert advice(auc=within)[1].endswith("in 55 % of cases, which cannot be distinguished from chance.")


def report(kappa, low, tokens):
    made = copy.deepcopy(REPORT)
    made["overall"]["kappa"] = estimate(kappa, low, None if kappa is None else kappa + 0.1)
    made["traffic"]["per_1000_verdicts"]["input_tokens"] = tokens
    return made


def test_of_forms_that_are_as_good_the_cheapest_is_named():
    forms = {"lists": report(0.2, 0.1, 50.0), "keyed": report(0.5, 0.4, 100.0), "keyed/1": report(0.55, 0.45, 900.0)}
    assert compare(list(forms.values()), list(forms)) == [
        "Best by kappa: keyed/1 (0.55).",
        "Not distinguishable from it here: keyed.",
        "Of these, keyed uses the fewest tokens.",
    ]
    assert compare([report(None, None, 1.0)], ["lists"])[0].startswith("No form gave verdicts with a known kappa")
