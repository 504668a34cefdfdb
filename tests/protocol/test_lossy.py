"""
A thousand conversations over bad networks, with every byte, code and end accounted for.

tests/helpers/world.py says what a seed decides and what is checked. One seed, or more:

    GWT_LOSSY_SEEDS=123 pytest tests/protocol/test_lossy.py
    GWT_LOSSY_SEEDS=1000-9999 pytest tests/protocol/test_lossy.py

The protocol floor knows no gevent, so that a tenth of the seeds is enough where it has patched.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
from gevent import monkey

from tests.helpers.world import World

CHUNK = 100

# What at least one seed of each chunk meets; a world where it never happens proves nothing.
ORDINARY = (
    "lost",
    "reordered",
    "duplicated",
    "corrupted",
    "rebound",
    "stalls",
    "key updates",
    "resets",
    "stops",
    "rests",
    "datagrams",
    "write waits",
    "SessionDraining",
)


def seeds() -> range:
    wanted = os.environ.get("GWT_LOSSY_SEEDS")
    if wanted:
        first, _, last = wanted.partition("-")
        return range(int(first), int(last or first) + 1)
    return range(100 if monkey.is_module_patched("socket") else 1000)


def chunks() -> list[object]:
    every = seeds()
    parts = [every[start : start + CHUNK] for start in range(0, len(every), CHUNK)]
    return [
        pytest.param(part, id=f"seeds-{part[0]}-{part[-1]}", marks=[pytest.mark.slow] * (n > 0))
        for n, part in enumerate(parts)
    ]


def play(seed: int) -> World:
    world = World(seed)
    try:
        world.play()
    except BaseException as exc:
        exc.add_note(f"This was seed {seed}: GWT_LOSSY_SEEDS={seed} plays it alone.")
        raise
    return world


@pytest.mark.deadline(300)
@pytest.mark.parametrize("part", chunks())
def test_every_byte_and_every_end_is_accounted_for(part):
    met: Counter[str] = Counter()
    for seed in part:
        met += play(seed).counts
    if len(part) == CHUNK:
        assert not [name for name in ORDINARY if not met[name]]


def test_a_seed_plays_the_same_again():
    def transcript(seed: int) -> list[str]:
        world = World(seed)
        world.transcript = []
        world.play()
        return world.transcript

    first = {seed: transcript(seed) for seed in range(10, 22)}
    assert sum(map(len, first.values())) > 500
    assert len({tuple(lines) for lines in first.values()}) == len(first)
    for seed, lines in first.items():
        assert transcript(seed) == lines
