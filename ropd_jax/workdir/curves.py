"""The curves of one run as one picture."""

from __future__ import annotations

import os
import pathlib

from ropd_jax.workdir.metrics import read_metrics

PANELS = (  # title, ((metric, label), ...), upper end of a share's axis or None
    ("reward (scored answers)", (("reward/mean", "mean"), ("reward/std", "std")), 1.0),
    ("held-out accuracy", (("eval/accuracy", "greedy"), ("eval/sampled_accuracy", "sampled")), 1.0),
    ("groups", (("teacher/unscored_frac", "unscored"), ("group/zero_variance_frac", "zero variance")), 1.0),
    ("response length (tokens)", (("sample/length_mean", "mean"),), None),
    ("entropy (nats per token)", (("update/entropy", "policy"),), None),
    ("gradient norm", (("update/grad_norm", "before clipping"),), None),
)


def curves_png(workdir: str | os.PathLike[str], *, title: str = "") -> pathlib.Path:
    """Draws ``curves.png`` from ``metrics.jsonl``: six panels over the optimizer step.

    A metric that was never recorded is labelled as such; unknown values leave a gap instead of a zero.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # without pyplot: no global state, no display
    from matplotlib.figure import Figure

    series = read_metrics(workdir)
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, metrics, top) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        axes.set_title(name, fontsize=11)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        drawn = 0
        for metric, label in metrics:
            steps, values = series.get(metric, ([], []))
            if steps:
                axes.plot(
                    steps, values, label=label, linewidth=1.6, marker="o" if len(steps) <= 20 else "", markersize=4
                )
                drawn += 1
        if not drawn:
            axes.text(0.5, 0.5, "not recorded", ha="center", va="center", color="gray", transform=axes.transAxes)
        elif len(metrics) > 1:
            axes.legend(fontsize=9, frameon=False)
        if top is not None:
            axes.set_ylim(-0.02, top + 0.02)
        elif drawn:
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    for axes in figure.axes[3:]:
        axes.set_xlabel("optimizer step")
    figure.suptitle(title or pathlib.Path(workdir).resolve().name, fontsize=12)
    path = pathlib.Path(workdir) / "curves.png"
    part = path.with_name(".curves.part.png")
    figure.savefig(part, dpi=110)
    os.replace(part, path)
    return path
