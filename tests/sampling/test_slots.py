"""The scheduler without a device: the example of `Slots.shrink`, and the ladders of sizes."""

from __future__ import annotations

import numpy as np

from ropd_jax.sampling.slots import Slots, halved, pool_size


def test_shrink_moves_live_rows_and_pages_to_the_front():
    slots = Slots(parts=1, rows=4, slots=1, page=2, prompt_lens=[6], limits=[[9] * 4], key_PG2=np.zeros((1, 4, 2)))
    slots.take_prompts(1)
    slots.admit([7])
    slots.grow(4)
    for b, pages in ((0, []), (1, [2, 0]), (2, []), (3, [3])):  # x in row 1, y in row 3
        slots.own_pages[b] = list(pages)
        slots.view["depth_B"][b] = len(pages)
        for d, page in enumerate(pages):
            slots.view["table_BD"][b, d], slots.view["owner_M"][page] = page, b
            slots.view["first_M"][page] = 5 + 2 * d
    slots.part[0].pages = [1]
    for b in (0, 2):
        slots.release(b)
    x, y = slots.job[1], slots.job[3]
    from_B, from_M = slots.shrink(2)
    assert (from_B.tolist(), from_M.tolist()) == ([1, 3], [2, 0, 3, 0])
    assert slots.job == [x, y] and slots.own_pages == {0: [0, 1], 1: [2]}
    assert slots.view["table_BD"][0, :2].tolist() == [0, 1] and slots.view["table_BD"][1, 0] == 2
    assert slots.view["owner_M"].tolist() == [0, 0, 1, 0] and slots.view["first_M"].tolist() == [5, 7, 5, -1]
    assert slots.view["row_PG"][0, [1, 3]].tolist() == [0, 1] and slots.view["row_PG"].max() < 2
    assert (slots.part[0].rows, slots.part[0].pages) == ([], [3]) and not slots.done.any()


def test_pages_move_down_until_few_blocks_hold_them():
    slots = Slots(
        parts=1, rows=2, slots=1, page=4, prompt_lens=[5], limits=[[16, 16]], key_PG2=np.zeros((1, 2, 2), np.uint32)
    )  # fmt: skip
    slots.take_prompts(1)
    slots.grow(8)
    slots.admit([7])
    for t in (4, 8, 12):  # rows 0 and 1 take a page each in turn
        slots.t[:] = t
        slots.commit()
    assert slots.own_pages == {0: [0, 2, 4], 1: [1, 3, 5]} and slots.compact(2, 4) is None
    slots.release(0)
    moved = slots.compact(2, 1)  # three pages fit into two blocks
    assert [m.tolist() for m in moved] == [[5], [0]] and slots.compact(2, 1) is None
    assert slots.own_pages == {1: [1, 3, 0]} and slots.view["table_BD"][1].tolist()[:3] == [1, 3, 0]
    assert slots.view["first_M"].tolist() == [12, 4, -1, 8, -1, -1, -1, -1]  # base 4: pages begin at 4, 8, 12
    assert slots.view["owner_M"][[0, 1, 3]].tolist() == [1, 1, 1] and sorted(slots.part[0].pages) == [2, 4, 5, 6, 7]
    assert [m.tolist() for m in slots.compact(1, 4)] == [[3, 0, 0, 0], [2, 8, 8, 8]]  # 8 is not a place


def test_the_rollout_with_the_fewest_tokens_makes_room_and_waits_until_there_is_some():
    slots = Slots(
        parts=1, rows=3, slots=1, page=4, prompt_lens=[5], limits=[[16] * 3], key_PG2=np.zeros((1, 3, 2), np.uint32),
        most_pages=4,
    )  # fmt: skip
    slots.take_prompts(1)
    slots.grow(4)
    slots.admit([7])
    for t in ([4, 4, 4], [8, 5, 5], [8, 8, 6]):  # a page each; row 0 takes the last one, then row 1 needs one
        slots.t[:] = t
        slots.job[2].tokens = [3] * t[2]
        slots.make_room()
        if t != [8, 8, 6]:
            slots.commit()
    assert (slots.restarts, slots.lost_tokens) == (1, 6) and slots.job[2] is None
    assert [job.tokens for _, job in slots.part[0].ready] == [[]] and slots.own_pages.keys() == {0, 1}
    assert slots.pages_missing() == 0  # the pages of row 2 are enough for row 1
    slots.commit()
    slots.admit([7])
    assert slots.job[2] is None  # no page is left, and two rollouts may need one
    slots.release(0)
    slots.admit([7])
    assert slots.job[0] is not None and slots.t[0] == 0 and slots.unfinished


def test_sizes_come_from_short_ladders():
    assert [pool_size(n, 16) for n in (1, 16, 17, 50)] == [16, 16, 32, 64]
    assert (halved(128, 20), halved(128, 65), halved(48, 1), halved(32, 1)) == (32, 128, 48, 16)
