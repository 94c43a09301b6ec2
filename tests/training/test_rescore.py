"""The change of tokens' log-probs by an update: none without one, and in the direction of the advantages with one."""

from __future__ import annotations

import jax
import numpy as np

import ropd_jax as ropd
from experiments import quickstart
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.training import by_hand
from ropd_jax.training.rescore import changes_of
from ropd_jax.training.setup import update_config
from ropd_jax.types import Judgement


def test_the_change_is_none_without_an_update_and_follows_the_advantages_with_one():
    student = ropd.load_student("tiny")
    groups = ropd.sample(student, ["7 - 8 + 3 =", "9 + 5 - 1 ="], n=4, max_tokens=24)
    rewards = [(1.0, 0.0, 0.0, 1.0), (0.0, 1.0, 0.0, 0.0)]
    cfg = quickstart.get_config()
    cfg.sampling.rollouts, cfg.data.prompts_per_step = 4, 2
    mesh = mesh_lib.make_mesh(1, 1, jax.local_devices()[:1])

    def changes(params, length=64):
        how = update_config(cfg)
        with jax.set_mesh(mesh):
            placed = mesh_lib.put(jax.device_get(params), mesh, mesh_lib.RULES.storage(params))
            return changes_of(how, student.cfg, placed, None, groups, mesh, length)

    same = changes(student.params)
    assert [[len(c) for c in g] for g in same] == [[len(r.tokens_T) for r in g.rollouts] for g in groups]
    assert max(np.abs(c).max() for g in same for c in g) < 1e-3
    judgements = [Judgement(r, (None,) * 4) for r in rewards]
    trained, _ = by_hand.update(student, groups, judgements, method="rlvr", cfg=cfg, lr=1e-4)
    moved = changes(trained.params)
    better = np.mean([c.sum() for g, r in zip(moved, rewards, strict=True) for c, x in zip(g, r, strict=True) if x])
    worse = np.mean([c.sum() for g, r in zip(moved, rewards, strict=True) for c, x in zip(g, r, strict=True) if not x])
    assert better > 0 > worse
    cut = changes(trained.params, length=len(groups[0].prompt_tokens_T) + 4)
    np.testing.assert_allclose(cut[0][0][:4], moved[0][0][:4], atol=1e-4)
    assert not cut[0][0][4:].any()
