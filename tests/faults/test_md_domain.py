"""Atoms that get lost, positions that are no numbers, boxes too small for the ranks: all ranks refuse, with the same words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import ConvergenceError, GewuError, InputError
from gewu.core.ranks import SERIAL, Ranks
from gewu.physics.md.domain import Domain
from gewu.physics.md.localise import fractions
from gewu.physics.md.state import State, Terms
from tests import domaintools as toy


def keep(state: State, rows: Any) -> None:
    """Leave only some owned rows, as a defect in the migration would."""
    for name in ("position_n3", "velocity_n3", "tag_n"):
        setattr(state, name, getattr(state, name)[rows])
    state.owned = len(state.tag_n)


def said(ranks: Ranks, action: Callable[[], object]) -> list[str]:
    """Return the kind and the text of what every rank raised."""
    try:
        action()
        mine = "nothing"
    except GewuError as error:
        mine = f"{type(error).__name__}: {error}"
    return ranks.allgather(mine)


def start(ranks: Ranks, groups: bool = True) -> tuple[Any, Domain, State]:
    topology, full = toy.liquid((4, 4, 4))
    domain = toy.domain_of(ranks, topology, full) if groups else Domain(ranks, full, None, toy.HALO)
    state = domain.distribute(full)
    state.step = 17
    return topology, domain, state


def damage(ranks: Ranks) -> None:
    """Break something on the last rank (with one rank: on that) and print what all of them say."""
    last = ranks.rank == ranks.size - 1
    found = {}

    def reorganised(name: str, change: Callable[[Domain, State], None], groups: bool = True) -> None:
        _, domain, state = start(ranks, groups)
        if last:
            change(domain, state)
        found[name] = said(ranks, lambda: domain.reorganise(state))

    def lose(domain: Domain, state: State) -> None:
        domain.image_n3 = np.delete(domain.image_n3, [3, 5], axis=0)
        keep(state, np.delete(np.arange(state.owned), [3, 5]))

    def duplicate(domain: Domain, state: State) -> None:
        domain.image_n3 = domain.image_n3[[0, 0, *range(1, state.owned)]]
        keep(state, [0, 0, *range(1, state.owned)])

    def swap(domain: Domain, state: State) -> None:
        state.tag_n[1] = state.tag_n[0]  # the number of rows stays right

    def not_a_number(domain: Domain, state: State) -> None:
        state.position_n3[4, 2] = np.nan
        state.position_n3[5, 0] = np.inf
        state.position_n3[6, 1] = 1e200
        found["tags"] = (state.tag_n[4:7] + 1).tolist()

    reorganised("lost", lose, groups=False)
    reorganised("lost with groups", lose)
    reorganised("duplicated", duplicate, groups=False)
    reorganised("swapped", swap, groups=False)
    reorganised("not a number", not_a_number)
    reorganised("healthy", lambda domain, state: None)
    _, domain, state = start(ranks, groups=False)
    if last:
        lose(domain, state)
    found["gather"] = said(ranks, lambda: domain.gather(state))
    found["tags"] = ranks.allgather(found.get("tags"))[-1]
    if ranks.size > 1:
        terms(ranks, found)
    if ranks.is_root:
        print(json.dumps(found))


def terms(ranks: Ranks, found: dict[str, Any]) -> None:
    """Force fields that do not fit the halo, and a box that shrank."""
    topology, full = toy.liquid((3, 3, 8))
    domain = toy.domain_of(ranks, topology, full)
    assert domain.bricks.shape == (1, 1, 2)
    state = domain.distribute(full)
    state.step = 17
    height = fractions(full.position_n3, full.box_33)[:, 2] % 1.0
    across = np.array([[np.argmin(abs(height - middle)) for middle in (0.25, 0.75)]], np.int32)  # deep in either brick
    bonded = replace(topology, bonds=Terms(across, np.ones((1, 2))))
    found["bond later"] = said(ranks, lambda: domain.localise(bonded, state))
    state.step = 0
    found["bond"] = said(ranks, lambda: domain.localise(bonded, state))
    excluded = replace(topology, exclusions=across)
    found["exclusion"] = said(ranks, lambda: domain.localise(excluded, state))
    rigid = replace(topology, constraints=Terms(across, np.ones((1, 1))))
    found["constraint"] = said(ranks, lambda: domain.localise(rigid, state))
    state.box_33 = 0.3 * state.box_33
    state.position_n3 *= 0.3
    state.step = 18
    found["shrunk"] = said(ranks, lambda: domain.reorganise(state))
    topology, full = toy.liquid((4, 4, 4))
    found["too deep"] = said(ranks, lambda: Domain(ranks, full, None, 0.8))
    found["vacuum"] = said(ranks, lambda: Domain(ranks, replace(full, periodic=False), None, 0.2))


def check(found: dict[str, Any], ranks: int) -> None:
    texts = {}
    for name, parts in found.items():
        if name != "tags":
            assert len(parts) == ranks and len(set(parts)) == 1, (name, parts)  # the same words on every rank
            texts[name] = parts[0]
    n = len(toy.liquid((4, 4, 4))[1].tag_n)
    for name in ("lost", "lost with groups", "gather"):
        assert texts[name].startswith(f"GewuError: atom: step 17: 2 of {n} atoms lost, 0 duplicated between ranks (got [")
    assert f"0 of {n} atoms lost, 1 duplicated" in texts["duplicated"]
    assert f"1 of {n} atoms lost, 1 duplicated" in texts["swapped"]
    assert texts["not a number"].startswith("ConvergenceError: atom: step 17: the positions of 3 atoms are not finite")
    assert f"(got {sorted(found['tags'])})" in texts["not a number"] and texts["healthy"] == "nothing"
    if ranks > 1:
        assert texts["bond later"].startswith("ConvergenceError: step 17: atoms [") and "`bonds`" in texts["bond later"]
        assert (
            texts["bond"].startswith("InputError: step 0: atoms [")
            and "apart than the halo; the halo is 0.45 nm" in texts["bond"]
        )
        assert "`exclusions`" in texts["exclusion"] and "`constraints` belong to different groups" in texts["constraint"]
        assert texts["shrunk"].startswith("InputError: ranks: step 18: 2 ranks cut the box into bricks thinner than the halo")
        assert re.search(
            r"2 ranks cannot share a box.*at least 0.8 x 0.8 x 0.8 high.*at most 1; start 1 rank ", texts["too deep"]
        )
        assert texts["vacuum"].startswith("InputError: ranks: a system in vacuum")


def test_one_rank_counts_its_atoms_too(capsys: pytest.CaptureFixture[str]) -> None:
    damage(SERIAL)
    check(json.loads(capsys.readouterr().out), 1)


def test_two_ranks_refuse_together() -> None:
    check(json.loads(toy.mpirun(2, "tests.faults.test_md_domain", "damage")), 2)


def test_an_array_of_another_length_is_not_forwarded() -> None:
    _, domain, state = start(SERIAL)
    with pytest.raises(GewuError, match="rows"):
        domain.forward(np.zeros(state.owned + 1))


def test_the_errors_have_the_exit_codes_of_their_kinds() -> None:
    _, domain, state = start(SERIAL)
    state.position_n3[0] = np.nan
    with pytest.raises(ConvergenceError, match="time step too large"):
        domain.reorganise(state)
    assert (InputError.exit_code, ConvergenceError.exit_code, GewuError.exit_code) == (2, 3, 5)
