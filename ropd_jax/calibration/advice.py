"""The recommendation at the end of a report: sentences derived by fixed rules from the figures and intervals.

A rule applies only if the interval allows it: a bias whose interval contains 0 is not mentioned, and a kind of
criterion is called reliable or unreliable only if its whole interval is on one side of the bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ropd_jax.calibration.probes import PROBES

GOOD, FAIR = 0.6, 0.4  # kappa: "substantial" and "moderate" in Landis and Koch (1977)
FEW = 20  # with fewer questions, intervals are wide
LEAST_BASES = 5  # with fewer wrong answers, a gain is not mentioned
MOST_NAMED = 3  # maximum number of gains in one sentence
SMALL = 0.02  # a bias or a share below this is not mentioned


def recommend(report: Mapping[str, Any]) -> list[str]:
    """The sentences of the recommendation, most important first."""
    found = report["overall"]
    value, low = found["kappa"]["value"], found["kappa"]["low"]
    accuracy = found["accuracy"]["value"]
    if accuracy is None:
        causes = ", ".join(report["unscored"]["causes"]) or "unknown"
        return [
            f"Do not train with this verifier: no verdict could be read (causes: {causes}). Try another form or "
            "another model, and check that the server accepts a JSON schema."
        ]
    wrong = f"expect about {_percent(1 - accuracy)} wrong verdicts"
    if value is None:
        advice = [f"All verdicts are the same, so only this is known: {wrong}."]
    elif low is not None and low <= 0 and report["questions"] < FEW:
        advice = [f"With so few questions, the verdicts cannot be distinguished from chance; {wrong}."]
    elif low is not None and low <= 0:
        advice = [f"Do not train with this verifier: its verdicts cannot be distinguished from chance; {wrong}."]
    elif value >= GOOD:
        advice = [f"You can train with this verifier; {wrong}."]
    elif value >= FAIR:
        advice = [f"You can train with this verifier if you are careful; {wrong}."]
    else:
        advice = [f"The verifier is too weak for training; use a better form or model ({wrong})."]
    advice += _probes(report)
    advice += _kinds(report["kinds"]) + _ranking(report["auc"]["within"]) + _errors(found)
    advice += _biases(report) + _hostile(report) + _reading(report)
    if report["questions"] < FEW:
        advice.append(f"Only {report['questions']} questions were used: use more before you rely on these figures.")
    if report.get("stopped"):
        advice.append("The budget was reached before all questions were judged: the families are not equally covered.")
    return advice


def compare(reports: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Recommends a form: of those whose kappa cannot be distinguished from the best, the one with the fewest tokens."""
    known = [(n, r) for n, r in zip(names, reports, strict=True) if r["overall"]["kappa"]["value"] is not None]
    if not known:
        return ["No form gave verdicts with a known kappa; do not use any of them."]
    best_name, best = max(known, key=lambda pair: pair[1]["overall"]["kappa"]["value"])
    least = best["overall"]["kappa"]["low"]
    close = [
        (n, r)
        for n, r in known
        if n == best_name or (least is not None and (r["overall"]["kappa"]["value"] or 0.0) >= least)
    ]
    priced = [(n, r) for n, r in close if _tokens(r) is not None]
    advice = [f"Best by kappa: {best_name} ({best['overall']['kappa']['value']:.2f})."]
    if len(close) > 1:
        advice.append(f"Not distinguishable from it here: {', '.join(n for n, _ in close if n != best_name)}.")
    if len(close) > 1 and len(priced) == len(close):
        cheap = min(priced, key=lambda pair: _tokens(pair[1]) or 0.0)[0]
        advice.append(f"Of these, {cheap} uses the fewest tokens.")
    return advice


def _tokens(report: Mapping[str, Any]) -> float | None:
    each = report["traffic"]["per_1000_verdicts"]
    if each["input_tokens"] is None or each["output_tokens"] is None:
        return None
    return each["input_tokens"] + each["output_tokens"]


def _kinds(kinds: Mapping[str, Any]) -> list[str]:
    known = {k: v["kappa"] for k, v in kinds.items() if v["kappa"]["low"] is not None}
    good = [_name(k) for k, kappa in known.items() if kappa["low"] >= GOOD]
    bad = [_name(k) for k, kappa in known.items() if kappa["high"] < GOOD and kappa["value"] < FAIR]
    said = [f"Reliable: {', '.join(good)}."] if good else []
    if bad:
        said.append(f"Not reliable: {', '.join(bad)}; give such criteria few points, or word them differently.")
    return said


def _ranking(within: Mapping[str, Any]) -> list[str]:
    if within["value"] is None:
        return []
    share = _percent(within["value"])
    text = f"Of two answers to one question, the reward prefers the correct one in {share} of cases"
    chance = within["low"] is not None and within["low"] <= 0.5
    return [f"{text}{', which cannot be distinguished from chance' if chance else ''}."]


def _errors(found: Mapping[str, Any]) -> list[str]:
    up, down = found["sensitivity"], found["specificity"]
    if None in (up["low"], down["low"]):
        return []
    if up["high"] < down["low"]:
        return ["It is strict: it rejects criteria that are met more often than it accepts criteria that are not."]
    if down["high"] < up["low"]:
        return ["It is lenient: it accepts criteria that are not met more often than it rejects criteria that are."]
    return []


def _biases(report: Mapping[str, Any]) -> list[str]:
    bias, said = report["bias"], []
    place, length, style = bias["position"], bias["length"]["difference"], bias["style"]["difference"]
    if _real(place):
        where = "Later" if place["value"] > 0 else "Earlier"
        said.append(
            f"{where} positions get more true verdicts ({_percent(abs(place['value']))} from end to end): use one "
            "answer per call (teacher.verifier.answers_per_call=1)."
        )
    for found, what in ((length, "Longer"), (style, "Confident Markdown")):
        if _real(found):
            more = "more" if found["value"] > 0 else "fewer"
            size = _percent(abs(found["value"]))
            said.append(f"{what} answers get {size} {more} true verdicts than the same answers in plain form.")
    halo = bias["halo"]
    if halo["low"] is not None and halo["low"] > SMALL:
        said.append(
            f"About {_percent(halo['value'])} of the answers get the same verdict on all of their criteria: try one "
            "criterion per call (teacher.verifier.criteria_per_call=1)."
        )
    flips = report["flips"]
    if flips["low"] is not None and flips["low"] > SMALL:
        said.append(f"Showing the same answers in another order changes {_percent(flips['value'])} of the verdicts.")
    return said


def _hostile(report: Mapping[str, Any]) -> list[str]:
    found = report["answer_kinds"].get("hostile")
    usual = report["overall"]["specificity"]
    if not found or None in (found["specificity"]["high"], usual["low"]):
        return []
    if found["specificity"]["high"] < usual["low"]:
        share = _percent(1 - found["specificity"]["value"])
        return [f"Hostile answers work: {share} of the criteria that they do not meet are judged true."]
    return []


def _probes(report: Mapping[str, Any]) -> list[str]:
    """The largest gains of wrong answers with a remedy for the form, and what a right answer gains if cut."""
    found = report.get("probes")
    if not found:
        return []
    gains = {n: g["value"] for n, g in found["gains"].items() if g["n"] >= LEAST_BASES and _real(g) and g["value"] > 0}
    said = []
    if gains:
        most = sorted(gains, key=lambda n: -gains[n])[:MOST_NAMED]
        first, *others = (f"{gains[n]:.2f}{{}} by {PROBES[n].gains_by}" for n in most)
        each = ", ".join([first.format(" of it"), *(text.format("") for text in others)])
        settings = report["verifier"]["settings"]
        larger = [key for key in ("answers_per_call", "criteria_per_call") if settings.get(key, 0) != 1]
        remedy = f"teacher.verifier.{larger[0]}=1, or another model" if larger else "another model"
        said.append(f"The reward can be gamed: a wrong answer gains {each}. Try {remedy}, and run the probes again.")
    falls, empty = found["cuts"]["falls"], found["cuts"]["rewards"][-1]["reward"]
    if falls["high"] is not None and falls["high"] < 1 - SMALL:
        said.append(f"Shortening a right answer raises its reward in {_percent(1 - falls['value'])} of the steps.")
    if empty["low"] is not None and empty["low"] > SMALL:
        said.append(f"An empty answer still gets {empty['value']:.2f} of the reward.")
    return said


def _reading(report: Mapping[str, Any]) -> list[str]:
    share, causes = report["unscored"]["share"], report["unscored"]["causes"]
    if share is None or share < SMALL:
        return []
    top = max(causes, key=lambda cause: causes[cause])
    return [f"{_percent(share)} of the answers got no verdict (most often: {top})."]


def _real(found: Mapping[str, Any]) -> bool:
    low, high = found["low"], found["high"]
    return low is not None and high is not None and low * high > 0 and abs(found["value"]) >= SMALL


def _name(kind: str) -> str:
    return {"no_error": "absence of an error"}.get(kind, kind.replace("_", " "))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
