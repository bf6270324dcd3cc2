"""Many ranks compute what one computes: a triclinic toy liquid by brute force, under mpirun (skipped where MPI is absent)."""

from __future__ import annotations

import functools
import itertools
import json

import numpy as np
import pytest

from gewu.core.ranks import SERIAL, Ranks
from gewu.physics.md.box import heights
from gewu.physics.md.domain import Domain
from gewu.physics.md.localise import fractions, groups
from gewu.physics.md.state import State, Terms, Topology, new_state
from tests import domaintools as toy

CUBE, BAR = (4, 4, 4), (8, 3, 3)
GRIDS = {(2, CUBE): (1, 1, 2), (4, CUBE): (1, 2, 2), (8, CUBE): (2, 2, 2), (3, BAR): (3, 1, 1), (4, BAR): (4, 1, 1)}
CASES = [(2, "cube"), (4, "cube"), (8, "cube"), (3, "bar"), (4, "bar")]
STRAIN = np.array([1.0004, 0.9998, 1.0003])


@functools.cache
def figures(n: int, case: str) -> dict[str, list[float]]:
    """Return what the root of `case` on n ranks printed; started once for all tests."""
    return json.loads(toy.mpirun(n, "tests.physics.test_md_domain", case))


def cube(ranks: Ranks) -> None:
    everything(ranks, CUBE)


def bar(ranks: Ranks) -> None:
    everything(ranks, BAR)


def everything(ranks: Ranks, cells: tuple[int, int, int]) -> None:
    layout(ranks, cells)
    steps = 100 if ranks.size <= 4 else 20  # many more ranks than cores are slow
    found = {"trajectory": trajectory(ranks, cells, steps, None), "strained": trajectory(ranks, cells, 20, STRAIN)}
    if ranks.is_root:
        print(json.dumps(found))


def trajectory(ranks: Ranks, cells: tuple[int, int, int], steps: int, strain: np.ndarray | None) -> list[float] | None:
    """Differences of energies, positions, velocities to those of one rank; the shortest way along an axis; last energies."""
    topology, start = toy.liquid(cells)
    energies, position, velocity = toy.run(ranks, topology, start, steps, strain)
    if not ranks.is_root:
        return None
    alone = toy.run(SERIAL, topology, start, steps, strain)
    differences = [float(np.abs(a - b).max()) for a, b in zip((energies, position, velocity), alone, strict=True)]
    return [*differences, float(np.abs(position - start.position_n3).max(axis=0).min()), *energies[2:].tolist()]


@pytest.mark.parametrize("kind", ["trajectory", "strained"])
@pytest.mark.parametrize(("n", "case"), CASES)
def test_many_ranks_follow_the_trajectory_of_one(n: int, case: str, kind: str) -> None:
    """100 steps (20 on 8 ranks) in a fixed box; 20 in one that is stretched each step, so that its images move."""
    energy, position, velocity, way, springs, pairs = figures(n, case)[kind]
    assert position < 1e-10 and velocity < 1e-10  # the bar; only the order of sums differs (1e-13 seen)
    assert energy < 1e-9 * (abs(springs) + abs(pairs))  # weighted terms: each counted once over all ranks
    assert way > 0.08 and abs(springs) > 1.0 and abs(pairs) > 1.0  # atoms went through bricks, and there were forces


def layout(ranks: Ranks, cells: tuple[int, int, int]) -> None:
    """Who owns what, and what stands in the halo; every rank asserts."""
    topology, start = toy.liquid(cells)
    domain = toy.domain_of(ranks, topology, start)
    assert domain.bricks.shape == GRIDS[ranks.size, cells], domain.bricks
    state = domain.distribute(start)
    own, n, tag, cut = state.owned, len(start.tag_n), state.tag_n, np.array(domain.decomposed)
    for name in ("position_n3", "velocity_n3", "force_n3", "mass_n", "charge_n", "type_n"):
        assert len(getattr(state, name)) == len(tag) > own
    assert np.array_equal(state.mass_n, start.mass_n[tag]) and np.array_equal(state.type_n, start.type_n[tag])
    assert np.array_equal(state.charge_n, start.charge_n[tag])
    assert (np.diff(tag[:own]) > 0).all() and ranks.allreduce(own) == n
    assert np.array_equal(state.velocity_n3[:own], start.velocity_n3[tag[:own]])

    # groups are whole and together, their first atom inside the brick
    group = groups(topology)
    counts = np.bincount(group[tag[:own]], minlength=group.max() + 1)
    assert np.isin(counts - np.bincount(group), (0,)).sum() + (counts == 0).sum() == len(counts)
    fraction = fractions(state.position_n3, state.box_33)
    first = np.unique(group[tag[:own]], return_index=True)[1]
    lower, upper = domain.bricks.bounds(ranks.rank)
    assert ((fraction[first] >= lower - 1e-12) | ~cut).all() and ((fraction[first] <= upper + 1e-12) | ~cut).all()
    local = domain.localise(topology, state)
    length = np.linalg.norm(toy.apart(domain, state, *local.bonds.index.T), axis=1)
    assert np.abs(length - local.bonds.parameter[:, 1]).max() < 1e-12  # all copies are those next to each other
    for index in (local.bonds.index, local.exclusions):
        assert ranks.allreduce(int((index >= own).sum())) > 0
    assert local.settles.index.size == 0 or local.settles.index.max() < own
    assert ranks.allreduce(len(local.settles.index)) == len(topology.settles.index)
    assert np.array_equal(local.molecule_n, topology.molecule_n[tag]) and len(local) == len(tag)

    # positions are those of the input, and each pair within the halo is seen: all pairs of one rank, counted over many
    assert np.abs(domain.gather(state)[0] - start.position_n3).max() < 1e-13
    alone = Domain(SERIAL, start, None, toy.HALO)
    i, _, _ = toy.near(alone, topology, start, toy.HALO)
    here, _, _ = toy.near(domain, local, state, toy.HALO)
    seen = ranks.allreduce(np.bincount(tag[here], minlength=n))
    assert np.array_equal(seen, np.bincount(i, minlength=n)) and seen.sum() > n

    # ghosts: moved by whole boxes along cut directions only; forward brings the owners' numbers
    for array in (tag * 1.5, np.stack([tag, -tag], 1).astype(np.int32)):
        given = array.copy()
        given[own:] = 0
        domain.forward(given)
        assert np.array_equal(given, array)
    whole = fraction - fractions(domain.gather(state)[0], state.box_33)[tag]
    assert np.abs(whole - np.rint(whole)).max() < 1e-12 and not np.rint(whole)[:, ~cut].any()
    state.position_n3[own:] = np.nan
    domain.exchange(state)
    assert np.abs(fractions(state.position_n3, state.box_33) - fraction).max() < 1e-15
    assert domain.bytes_per_exchange > 0

    far(ranks, domain, state, start.position_n3)


def far(ranks: Ranks, domain: Domain, state: State, position_n3: np.ndarray) -> None:
    """Atoms that went through many bricks at once, and a restart."""
    own = slice(state.owned)
    group = domain._leader[state.tag_n[own]]
    jump = np.random.default_rng(4).normal(scale=3.0, size=(len(position_n3), 3))
    state.position_n3[own] += jump[group]
    before = state.tag_n[own].copy()
    domain.reorganise(state)
    own = slice(state.owned)
    assert ranks.allreduce(len(np.setdiff1d(state.tag_n[own], before))) > len(position_n3) // 3
    assert np.abs(domain.gather(state)[0] - position_n3 - jump[domain._leader]).max() < 1e-12

    again = domain.restore(state, domain.to_state(state))
    for name in ("position_n3", "velocity_n3", "tag_n", "mass_n"):
        assert np.array_equal(getattr(again, name), getattr(state, name)), name
    assert again.owned == state.owned


@pytest.mark.parametrize(("n", "case"), CASES)
def test_owners_ghosts_and_groups(n: int, case: str) -> None:
    assert figures(n, case)  # `layout` asserts on every rank; a failure there ends the run


def test_one_rank_owns_everything_and_has_no_ghosts() -> None:
    topology, start = toy.liquid((3, 3, 3))
    domain = toy.domain_of(SERIAL, topology, start)
    state = domain.distribute(start)
    assert domain.decomposed == (False, False, False) and state.owned == len(state.tag_n) == len(topology)
    assert np.array_equal(state.position_n3, start.position_n3)  # nothing is wrapped
    domain.exchange(state)
    domain.reorganise(state)
    assert np.array_equal(domain.gather(state)[0], start.position_n3) and domain.bytes_per_exchange == 0
    local = domain.localise(topology, state)
    for name, (index, parameter) in topology.tables().items():
        assert np.array_equal(getattr(local, name).index, index) and np.array_equal(getattr(local, name).parameter, parameter)
    assert np.array_equal(local.exclusions, topology.exclusions)
    assert state.position_n3 is not start.position_n3 and state.box_33 is not start.box_33


def test_groups_join_all_rigid_ties() -> None:
    constraints = Terms(np.array([[0, 1], [1, 4]], np.int32), np.ones((2, 1)))
    settles = Terms(np.array([[5, 7, 8]], np.int32), np.ones((1, 2)))
    sites = Terms(np.array([[2, 5, 7, 8], [9, 4, 0, 1]], np.int32), np.ones((2, 2)))
    none = np.zeros(10)
    topology = Topology(none + 1, none, none.astype(np.int32), ("A",), ("Ar",) * 10, np.ones((1, 1)), np.ones((1, 1)))
    assert len(set(groups(topology))) == 10
    tied = Topology(**{**vars(topology), "constraints": constraints, "settles": settles, "virtual_sites": sites})
    found = groups(tied)
    sets = {frozenset(np.flatnonzero(found == g)) for g in found}
    assert sets == {frozenset(s) for s in ([0, 1, 4, 9], [2, 5, 7, 8], [3], [6])}


def test_fractions_are_those_of_the_box() -> None:
    _, state = toy.liquid((2, 2, 2))
    found = fractions(state.position_n3, state.box_33)
    assert np.abs(found @ state.box_33 - state.position_n3).max() < 1e-14
    assert all(np.array_equal(fractions(state.position_n3[k : k + 1], state.box_33)[0], found[k]) for k in range(5))


def test_the_nearest_of_several_copies_is_found() -> None:
    """An atom that stands on both sides of a box of two bricks, seen from either end of the brick."""
    box = np.diag([2.0, 1.0, 1.0])
    names = dict(type_names=("A",), sigma_tt=np.ones((1, 1)), epsilon_tt=np.ones((1, 1)))
    bonds = Terms(np.array([[0, 2], [2, 1], [2, 0]], np.int32), np.arange(6.0).reshape(3, 2))
    bare = Topology(np.ones(3), np.zeros(3), np.zeros(3, np.int32), element=("Ar",) * 3, bonds=bonds, **names)
    state = new_state(bare, [[0.05, 0.5, 0.99], [0.95, 0.5, 0.5], [1.5, 0.5, 0.01]], box)
    domain = Domain(SERIAL, state, None, 0.5)
    state = domain.distribute(state)
    # as rank 0 of two would have it: atoms 0 and 1 owned, atom 2 a ghost on both sides
    domain.decomposed = (True, False, False)
    state.position_n3 = np.concatenate([state.position_n3, state.position_n3[2:] - box[0]])
    state.tag_n, state.owned = np.array([0, 1, 2, 2]), 2
    for order in itertools.permutations([2, 3]):
        swap = [0, 1, *order]
        below, above = 2 + order.index(3), 2 + order.index(2)
        ordered = new_state(bare, state.position_n3[:3], box)
        ordered.position_n3, ordered.tag_n, ordered.owned = state.position_n3[swap], state.tag_n[swap], 2
        ordered.mass_n = ordered.charge_n = np.zeros(4)
        local = domain.localise(bare, ordered)
        assert local.bonds.index.tolist() == [[0, below], [above, 1], [below, 0]]
        assert np.array_equal(local.bonds.parameter, bonds.parameter)
    assert heights(box)[0] == 2.0
