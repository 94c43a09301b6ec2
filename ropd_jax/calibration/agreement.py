"""Verdicts compared with the labels: accuracy, sensitivity, specificity, kappa, and the AUC of the reward."""

from __future__ import annotations

from typing import Any

import numpy as np

from ropd_jax.calibration.bootstrap import UNKNOWN, Bootstrap, certain, divided
from ropd_jax.types import Array

TP, FP, FN, TN = range(4)


def cells(question_V: Array, truth_V: Array, said_V: Array, questions: int) -> Array:
    """Per question, the numbers of true positives, false positives, false negatives and true negatives: (Q, 4)."""
    counts_QC = np.zeros((questions, 4))
    which_V = np.where(truth_V, np.where(said_V, TP, FN), np.where(said_V, FP, TN))
    np.add.at(counts_QC, (question_V, which_V), 1)
    return counts_QC


def kappa(counts_C: Array) -> Array:
    """Cohen's kappa of the cells (..., 4): (p_o - p_e) / (1 - p_e); NaN if all verdicts and labels are equal.

    >>> float(kappa(np.array([1.0, 0.0, 1.0, 2.0])))
    0.5
    """
    tp, fp, fn, tn = np.moveaxis(np.asarray(counts_C, float), -1, 0)
    n = tp + fp + fn + tn
    agreed = divided(tp + tn, n)
    chance = divided((tp + fn) * (tp + fp) + (tn + fp) * (tn + fn), n * n)
    return divided(agreed - chance, 1 - chance)


def agreement(counts_QC: Array, boot: Bootstrap) -> dict[str, Any]:
    """n, accuracy, sensitivity, specificity and kappa with their intervals, and the reliability.

    The reliability is sensitivity + specificity - 1, clipped to 0..1: 0 if the verdict carries no information about the
    truth.
    """
    total_C = counts_QC.sum(axis=0)
    tp, fp, fn, tn = counts_QC.T
    drawn_DC = boot.weights_DQ @ counts_QC
    sensitivity = boot.ratio(tp, tp + fn, share=True)
    specificity = boot.ratio(tn, tn + fp, share=True)
    right = boot.ratio(tp + tn, counts_QC.sum(axis=1), share=True)
    value = kappa(total_C)
    found = boot.estimate(None if np.isnan(value) else float(value), kappa(drawn_DC), int(total_C.sum()))
    if found["value"] == 1.0:  # all right: from the accuracy's lower bound, at the same shares of true and false
        share = (tp + fn).sum() / total_C.sum()
        chance = share**2 + (1 - share) ** 2
        found["low"] = (certain(right, int(np.count_nonzero(counts_QC.sum(axis=1))))["low"] - chance) / (1 - chance)
    both = (sensitivity["value"], specificity["value"])
    return {
        "n": int(total_C.sum()),
        "true": int(total_C[TP] + total_C[FN]),
        "accuracy": right,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "kappa": found,
        "reliability": None if None in both else min(max(sum(both) - 1, 0.0), 1.0),
    }


def auc(question_A: Array, value_A: Array, correct_A: Array, boot: Bootstrap, questions: int) -> dict[str, Any]:
    """The chance that a correct answer has a higher value than an incorrect one; equal values count half.

    Args:
        question_A, value_A, correct_A: one entry per answer with a known value and a known correctness.

    Returns:
        ``all``: over all pairs of answers; ``within``: over pairs of answers to one question, which is what advantages
            compare.
    """
    up, down = np.flatnonzero(correct_A), np.flatnonzero(~np.asarray(correct_A, bool))
    wins_QQ, pairs_QQ = np.zeros((questions, questions)), np.zeros((questions, questions))
    for i in up:
        wins = (value_A[i] > value_A[down] + 1e-9) + 0.5 * (np.abs(value_A[i] - value_A[down]) <= 1e-9)
        np.add.at(wins_QQ[question_A[i]], question_A[down], wins)
        np.add.at(pairs_QQ[question_A[i]], question_A[down], 1)
    n = int(pairs_QQ.sum())
    if not n:
        return {"all": {**UNKNOWN}, "within": {**UNKNOWN}}
    w = boot.weights_DQ
    drawn = divided(((w @ wins_QQ) * w).sum(axis=1), ((w @ pairs_QQ) * w).sum(axis=1))
    whole = certain(boot.estimate(wins_QQ.sum() / n, drawn, len(up) + len(down)), len(np.unique(question_A)))
    return {"all": whole, "within": boot.ratio(np.diag(wins_QQ), np.diag(pairs_QQ), share=True)}
