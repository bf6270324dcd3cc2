"""The cluster pair list: which groups of 4 particles meet which groups of 8.

Particles are sorted into columns along c over a grid in the a-b plane, in each column by height, and cut into clusters of 8
(`slots`; the last cluster of a column is filled up).  Half a cluster is an i-cluster of 4.  A row of the list names, for one
i-cluster, all 8-clusters j >= its own that hold a particle within the list radius of one of its four, under every periodic
image, so each pair occurs once.  The tiles of `gewu.core.simd` then take all 4 x 8 pairs at a time (Páll & Hess, Comput. Phys.
Commun. 184, 2641 (2013)).

Coordinates in a slot are relative to the centre of a block of about four list radii that the cluster lies in, so float32 keeps
the same absolute precision in a box of any size.  Block origins and box are rounded to what float32 holds exactly, positions
stretched along (by 1e-7 at most): else every atom that leaves through one side and enters through the other would jump by a
rounding, always the same way, and do work.  Rows are cut into runs of j-clusters of one block and one image; a run carries
the vector that takes the i-cluster into the frame of j.  Within a run the tiles with excluded pairs come first, each with 32
bits.

The list holds every pair within `reach` = cutoff + skin; it is good until a particle has moved by skin/2 since it was built,
which `Model` watches.  Buffers that are too small are grown and the list is built again; nothing is dropped.

With ghosts (rows >= owned) pairs of two ghosts are left out.  Directions with `images` False have no periodic images: vacuum,
or a direction cut into bricks, where ghosts stand for the images.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gewu.core.device import load_numba
from gewu.formats.forcefield.graph import partners
from gewu.physics.md.box import box_of, check_reach
from gewu.physics.md.state import Index, State

numba = load_numba()
from gewu.core.simd import columns, fill, less, rows, some  # noqa: E402
from gewu.core.vector import stamped  # noqa: E402

COLUMN_WIDTH = 2.27  # of a column, in units of density^(-1/3): measured best for a liquid
BLOCK_REACHES = 4.0
CHUNKS_PER_THREAD = 16
FAR = 1.0e4  # nm: filling particles stand at multiples of this, each elsewhere, outside every cutoff


@numba.njit(cache=True, parallel=True)  # type: ignore[misc]
def _fractions(x, inverse, images, grid, low, span, frac, wrap, column):  # type: ignore[no-untyped-def]
    """Fractional coordinates in [0, 1) along directions with images, the images taken off, and the column of each particle."""
    for i in numba.prange(x.shape[0]):
        for d in range(3):
            s = 0.0
            for k in range(d, 3):
                s += x[i, k] * inverse[k, d]
            if images[d]:
                whole = math.floor(s)
                s -= whole
                if s >= 1.0:
                    s, whole = 0.0, whole + 1.0
                wrap[i, d] = whole
            else:
                wrap[i, d] = 0
                s = (s - low[d]) / span[d]
            frac[i, d] = s
        a = min(int(frac[i, 0] * grid[0]), grid[0] - 1)
        b = min(int(frac[i, 1] * grid[1]), grid[1] - 1)
        column[i] = a * grid[1] + b


@numba.njit(cache=True, parallel=True)  # type: ignore[misc]
def _fill_columns(frac, first, filled, order, atom_of_slot, slot_of_atom):  # type: ignore[no-untyped-def]
    """Sort the particles of each column by height into its slots; `first` is the first slot, `filled` the first of `order`."""
    for c in numba.prange(first.size - 1):
        members = order[filled[c] : filled[c + 1]]
        heights = np.empty(members.size)
        for k in range(members.size):
            heights[k] = frac[members[k], 2]
        rank = np.argsort(heights)
        for k in range(members.size):
            atom_of_slot[first[c] + k] = members[rank[k]]
            slot_of_atom[members[rank[k]]] = first[c] + k
        for s in range(first[c] + members.size, first[c + 1]):
            atom_of_slot[s] = -1


@numba.njit(cache=True)  # type: ignore[misc]
def _count_columns(column, first, filled, order):  # type: ignore[no-untyped-def]
    """Counting sort of the particles by column; columns start at multiples of 8 slots.  Return the number of slots."""
    first[:] = 0
    for i in range(column.size):
        first[column[i] + 1] += 1
    filled[0] = 0
    for c in range(first.size - 1):
        n = first[c + 1]
        filled[c + 1] = filled[c] + n
        first[c + 1] = first[c] + (n + 7) // 8 * 8
    cursor = filled[:-1].copy()
    for i in range(column.size):
        order[cursor[column[i]]] = i
        cursor[column[i]] += 1
    return first[-1]


@numba.njit(cache=True, parallel=True)  # type: ignore[misc]
def _bound(x, wrap, frac, box, owned, atom_of_slot, half, whole, flow, fhigh, tall, holds, blocks, low_f, span, quantum, origin):  # type: ignore[no-untyped-def]
    """Bounding boxes (centre, half sides) of 4- and 8-clusters, their extent in fractions, their block and origin."""
    for c in numba.prange(atom_of_slot.size // 8):
        middle = np.zeros(3)
        low, high = np.empty((3, 3)), np.empty((3, 3))
        low[2, :], high[2, :] = 1e30, -1e30
        count = 0
        for part in range(2):
            h = 2 * c + part
            holds[h] = 0
            for d in range(3):
                low[part, d], high[part, d] = 1e30, -1e30
                flow[h, d], fhigh[h, d] = 1e30, -1e30
            for s in range(4 * h, 4 * h + 4):
                i = atom_of_slot[s]
                if i < 0:
                    continue
                holds[h] = max(holds[h], 2 if i < owned else 1)
                count += 1
                for d in range(3):
                    w = x[i, d]
                    for k in range(d, 3):
                        w -= wrap[i, k] * box[k, d]
                    low[part, d], high[part, d] = min(low[part, d], w), max(high[part, d], w)
                    flow[h, d], fhigh[h, d] = min(flow[h, d], frac[i, d]), max(fhigh[h, d], frac[i, d])
                    middle[d] += frac[i, d]
            for d in range(3):
                half[h, d], half[h, 3 + d] = (low[part, d] + high[part, d]) / 2, (high[part, d] - low[part, d]) / 2
                low[2, d], high[2, d] = min(low[2, d], low[part, d]), max(high[2, d], high[part, d])
        tall[c, 0], tall[c, 1] = min(flow[2 * c, 2], flow[2 * c + 1, 2]), max(fhigh[2 * c, 2], fhigh[2 * c + 1, 2])
        holding = max(holds[2 * c], holds[2 * c + 1])
        tall[c, 2] = holding
        for d in range(3):
            whole[c, d], whole[c, 3 + d] = (low[2, d] + high[2, d]) / 2, (high[2, d] - low[2, d]) / 2
        number = 0
        for d in range(3):
            k = min(int(middle[d] / max(count, 1) * blocks[d]), blocks[d] - 1)
            number = number * blocks[d] + k
            middle[d] = low_f[d] + (k + 0.5) / blocks[d] * span[d]
        origin[c, 3] = number
        for d in range(3):
            origin[c, d] = 0.0
            for k in range(d, 3):
                origin[c, d] += middle[k] * box[k, d]
            origin[c, d] = math.floor(origin[c, d] / quantum + 0.5) * quantum


@numba.njit(cache=True, parallel=True)  # type: ignore[misc]
def pack(position, stretch, base, atom_of_slot, x, y, z):  # type: ignore[no-untyped-def]
    """Write the positions, relative to their blocks, into the slots."""
    for s in numba.prange(atom_of_slot.size):
        i = atom_of_slot[s]
        if i >= 0:
            px, py, pz = position[i, 0], position[i, 1], position[i, 2]
            x[s] = px * stretch[0, 0] + py * stretch[1, 0] + pz * stretch[2, 0] - base[s, 0]
            y[s] = py * stretch[1, 1] + pz * stretch[2, 1] - base[s, 1]
            z[s] = pz * stretch[2, 2] - base[s, 2]
        else:
            x[s], y[s], z[s] = FAR * (1 + s % 4096), FAR * (1 + s // 4096), FAR


@numba.njit(cache=True, parallel=True)  # type: ignore[misc]
def _bases(origin, wrap, box, atom_of_slot, base):  # type: ignore[no-untyped-def]
    """Where each slot counts from: the origin of its block, and the images that were taken off its particle."""
    for s in numba.prange(atom_of_slot.size):
        i = atom_of_slot[s]
        for d in range(3):
            base[s, d] = origin[s // 8, d]
            if i >= 0:
                for k in range(d, 3):
                    base[s, d] += wrap[i, k] * box[k, d]


@numba.njit(cache=True, parallel=True)  # type: ignore[misc]
def _shifts(origin, box, row_first, run_image, run_range, run_shift, j_list):  # type: ignore[no-untyped-def]
    """The vector that takes an i-cluster into the frame of j, for every run."""
    chunks, i_clusters = run_range.shape[0], row_first.shape[0]
    for chunk in numba.prange(chunks):
        for i in range(chunk * i_clusters // chunks, (chunk + 1) * i_clusters // chunks):
            for run in range(row_first[i, 0], row_first[i, 1]):
                image, j = run_image[chunk, run], j_list[chunk, run_range[chunk, run, 0]]
                sa, sb, sc = image // 9 - 1, (image // 3) % 3 - 1, image % 3 - 1
                run_shift[chunk, run, 0] = origin[i >> 1, 0] + (sa * box[0, 0] + sb * box[1, 0] + sc * box[2, 0]) - origin[j, 0]
                run_shift[chunk, run, 1] = origin[i >> 1, 1] + (sb * box[1, 1] + sc * box[2, 1]) - origin[j, 1]
                run_shift[chunk, run, 2] = origin[i >> 1, 2] + sc * box[2, 2] - origin[j, 2]


@numba.njit(forceinline=True, error_model="numpy")  # type: ignore[misc]
def _touch(x, y, z, i, j, dx, dy, dz, reach2):  # type: ignore[no-untyped-def]
    """Is a particle of i-cluster i within reach of one of j-cluster j?"""
    ux = rows(x, 4 * i) + fill(dx) - columns(x, 8 * j)
    uy = rows(y, 4 * i) + fill(dy) - columns(y, 8 * j)
    uz = rows(z, 4 * i) + fill(dz) - columns(z, 8 * j)
    return some(less(ux * ux + uy * uy + uz * uz, fill(reach2)))


@numba.njit(forceinline=True, error_model="numpy")  # type: ignore[misc]
def _first_above(tall, begin, end, height):  # type: ignore[no-untyped-def]
    """First 8-cluster of a column, among [begin, end), that ends above `height`."""
    while begin < end:
        middle = (begin + end) // 2
        if tall[middle, 1] < height:
            begin = middle + 1
        else:
            end = middle
    return begin


@numba.njit(cache=True, parallel=True, error_model="numpy")  # type: ignore[misc]
def _nearest(position, wrap, box, first, other, image):  # type: ignore[no-untyped-def]
    """The image of each particle, of 27, under which it is nearest to each of its excluded partners."""
    for i in numba.prange(first.size - 1):
        for k in range(first[i], first[i + 1]):
            j = other[k]
            dx, dy, dz = position[i, 0] - position[j, 0], position[i, 1] - position[j, 1], position[i, 2] - position[j, 2]
            c = math.floor(dz / box[2, 2] + 0.5)
            dx, dy = dx - c * box[2, 0], dy - c * box[2, 1]
            b = math.floor(dy / box[1, 1] + 0.5)
            a = math.floor((dx - b * box[1, 0]) / box[0, 0] + 0.5)
            code = (wrap[i, 0] - wrap[j, 0] - a + 1) * 9 + (wrap[i, 1] - wrap[j, 1] - b + 1) * 3
            image[k] = code + wrap[i, 2] - wrap[j, 2] - c + 1


@numba.njit(forceinline=True, error_model="numpy", _nrt=False)  # type: ignore[misc]
def _mark_excluded(i, n, atom_of_slot, slot_of_atom, excl_first, excl_other, excl_shift, key, found, words):  # type: ignore[no-untyped-def]
    """Set the bits of the excluded pairs of i-cluster i in the words of its n tiles."""
    for row in range(4):
        a = atom_of_slot[4 * i + row]
        if a < 0:
            continue
        for k in range(excl_first[a], excl_first[a + 1]):
            s = slot_of_atom[excl_other[k]]
            j = s >> 3
            if j < i >> 1:
                continue
            for tile in range(n):
                if found[tile] == j and key[tile] % 27 == excl_shift[k]:
                    words[tile] |= np.uint32(1) << np.uint32(8 * row + (s & 7))


@numba.njit(forceinline=True, error_model="numpy", _nrt=False)  # type: ignore[misc]
def _search(i, x, y, z, box, images, grid, height, reach, first, half, whole, flow, fhigh, tall, holds, origin,
            key, found, words):  # type: ignore[no-untyped-def]  # fmt: skip
    """Find the tiles of i-cluster i: key (block of j, image), j and bits left out; return how many, stored or not."""
    n, own, reach2, close2 = 0, i >> 1, x.dtype.type(reach * reach * (1 + 1e-6)), reach * reach
    hx, hy, hz = half[i, 3], half[i, 4], half[i, 5]
    c0 = -images[2] if (1.0 - fhigh[i, 2]) * height[2] <= reach else 0  # which images come within reach of the box
    c1 = images[2] if flow[i, 2] * height[2] <= reach else 0
    d0 = -images[1] if (1.0 - fhigh[i, 1]) * height[1] <= reach else 0
    d1 = images[1] if flow[i, 1] * height[1] <= reach else 0
    e0 = -images[0] if (1.0 - fhigh[i, 0]) * height[0] <= reach else 0
    e1 = images[0] if flow[i, 0] * height[0] <= reach else 0
    for sc in range(c0, c1 + 1):
        bottom, top = flow[i, 2] + sc - reach / height[2], fhigh[i, 2] + sc + reach / height[2]
        for sb in range(d0, d1 + 1):
            b0 = max(0, math.floor((flow[i, 1] + sb - reach / height[1]) * grid[1]))
            b1 = min(grid[1] - 1, math.floor((fhigh[i, 1] + sb + reach / height[1]) * grid[1]))
            for sa in range(e0, e1 + 1):
                a0 = max(0, math.floor((flow[i, 0] + sa - reach / height[0]) * grid[0]))
                a1 = min(grid[0] - 1, math.floor((fhigh[i, 0] + sa + reach / height[0]) * grid[0]))
                shift = (sa + 1) * 9 + (sb + 1) * 3 + sc + 1
                vx = sa * box[0, 0] + sb * box[1, 0] + sc * box[2, 0]
                vy, vz = sb * box[1, 1] + sc * box[2, 1], sc * box[2, 2]
                mx, my, mz = half[i, 0] + vx, half[i, 1] + vy, half[i, 2] + vz
                for a in range(a0, a1 + 1):
                    for b in range(b0, b1 + 1):
                        c = numba.uint64(a * grid[1] + b)
                        begin, end = max(first[c] >> 3, own), first[c + numba.uint64(1)] >> 3
                        if begin >= end:
                            continue
                        for j in range(_first_above(tall, begin, end, bottom), end):
                            w = numba.uint64(j)
                            if tall[w, 0] > top:
                                break
                            ux, uy, uz = abs(mx - whole[w, 0]), abs(my - whole[w, 1]), abs(mz - whole[w, 2])
                            sx, sy, sz = hx + whole[w, 3], hy + whole[w, 4], hz + whole[w, 5]
                            ex, ey, ez = max(ux - sx, 0.0), max(uy - sy, 0.0), max(uz - sz, 0.0)
                            if ex * ex + ey * ey + ez * ez >= close2:
                                continue
                            if holds[i] + tall[w, 2] < 3 or (j == own and shift != 13):
                                continue
                            dx = x.dtype.type(origin[own, 0] + vx - origin[w, 0])
                            dy = x.dtype.type(origin[own, 1] + vy - origin[w, 1])
                            dz = x.dtype.type(origin[own, 2] + vz - origin[w, 2])
                            if not _touch(x, y, z, i, j, dx, dy, dz, reach2):
                                continue
                            if n < key.size:
                                key[n], found[n], words[n] = np.int64(origin[w, 3]) * 27 + shift, j, 0
                                if j == own:  # pairs j > i only
                                    for row in range(4):
                                        words[n] |= np.uint32((2 << (row + 4 * (i & 1))) - 1) << np.uint32(8 * row)
                            n += 1
    return n


@numba.njit(forceinline=True, error_model="numpy", _nrt=False)  # type: ignore[misc]
def _write(n, key, found, words, ranges, image, j_list, j_mask, runs, tiles):  # type: ignore[no-untyped-def]
    """Write n tiles as runs of equal keys, in each those with excluded pairs first; return the new counts of runs and tiles."""
    for k in range(n):
        key[k] = 2 * key[k] + (0 if words[k] != 0 else 1)
    for k in range(1, n):  # insertion sort: they come nearly sorted
        kept, j, word = key[k], found[k], words[k]
        p = k - 1
        while p >= 0 and key[p] > kept:
            key[p + 1], found[p + 1], words[p + 1] = key[p], found[p], words[p]
            p -= 1
        key[p + 1], found[p + 1], words[p + 1] = kept, j, word
    for k in range(n):
        if k == 0 or key[k] >> 1 != key[k - 1] >> 1:
            image[runs] = (key[k] >> 1) % 27
            ranges[runs, 0], ranges[runs, 1] = tiles, tiles
            runs += 1
        j_list[tiles], j_mask[tiles] = found[k], ~words[k]
        tiles += 1
        if words[k] != 0:
            ranges[runs - 1, 1] = tiles
        ranges[runs - 1, 2] = tiles
    return runs, tiles


@numba.njit(cache=True, parallel=True, error_model="numpy")  # type: ignore[misc]
@stamped
def _build(where, boxes, excluded, row_first, run_range, run_image, j_list, j_mask, need):  # type: ignore[no-untyped-def]
    """Write the rows of each chunk of i-clusters; `need[chunk]` says how many runs and tiles it takes, stored or not."""
    chunks, i_clusters, most = need.shape[0], row_first.shape[0], j_list.shape[1]
    holds = boxes[5]
    atom_of_slot, slot_of_atom, excl_first, excl_other, excl_shift = excluded
    for chunk in numba.prange(chunks):
        runs, tiles = 0, 0
        key, found, words = np.empty(most, np.int64), np.empty(most, np.int32), np.empty(most, np.uint32)
        lists = (run_range[chunk], run_image[chunk], j_list[chunk], j_mask[chunk])
        for i in range(chunk * i_clusters // chunks, (chunk + 1) * i_clusters // chunks):
            row_first[i, 0] = runs
            if holds[i] > 0:
                n = _search(i, *where, *boxes, key, found, words)
                if tiles + n <= most and runs + n <= run_range.shape[1]:
                    _mark_excluded(i, n, atom_of_slot, slot_of_atom, excl_first, excl_other, excl_shift, key, found, words)
                    runs, tiles = _write(n, key, found, words, *lists, runs, tiles)
                else:
                    runs, tiles = runs + n, tiles + n
            row_first[i, 1] = runs
        need[chunk, 0], need[chunk, 1] = runs, tiles


class ClusterList:
    """The list, and the particles in its order.

    Args:
        reach_nm: list radius: cutoff plus skin.
        precision: "mixed" (float32 slots) or "double".
        exclusions: (m, 2) pairs of rows left out, in their nearest image.
        images: along which box vectors there are periodic images; default: all when the state is periodic.
    """

    def __init__(
        self,
        reach_nm: float,
        precision: str,
        exclusions: Index | None = None,
        images: tuple[bool, bool, bool] | None = None,
    ) -> None:
        self.reach, self.images = reach_nm, images
        self.dtype = np.float32 if precision == "mixed" else np.float64
        self.exclusions = np.zeros((0, 2), np.int32) if exclusions is None else exclusions
        self.threads = int(numba.get_num_threads())
        self.chunks = CHUNKS_PER_THREAD * self.threads
        self._tiles, self._runs = 0, 0
        self._partner_first, self._partner_image = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._partner = np.zeros(0, np.int32)

    def build(self, state: State) -> None:
        """Sort the particles and write the list anew.

        Raises:
            InputError: the periodic box is smaller than twice the list radius.
        """
        images = np.array(self.images if self.images is not None else (state.periodic,) * 3, np.int64)
        box = state.box_33.copy() if state.periodic else np.eye(3)
        if images.any():
            check_reach(box, self.reach, "the pair list (cutoff + skin)")
        self._box = box
        self._sort(state, images)
        self._round()
        self.pack(state)
        self._exclude(state)
        self._rows(images)
        self._aim()

    def pack(self, state: State) -> None:
        """Bring the positions into the slots, and the list to the present box."""
        if state.periodic and not np.array_equal(state.box_33, self._box):
            self._box = state.box_33.copy()
            self._round()
            self._aim()
        pack(state.position_n3, self._stretch, self.base, self.atom_of_slot, self.x, self.y, self.z)

    def _round(self) -> None:
        """Round the box to what shifts hold exactly, and find the stretch that takes positions into it."""
        self._even = np.rint(self._box / self._quantum) * self._quantum
        self._stretch = np.linalg.inv(self._box) @ self._even
        _bases(self.origin, self.wrap, self._even, self.atom_of_slot, self.base)

    def _aim(self) -> None:
        _shifts(self.origin, self._even, self.row_first, self.run_image, self.run_range, self.run_shift, self.j_list)

    def _sort(self, state: State, images: Any) -> None:
        position, n, box = state.position_n3, len(state.position_n3), self._box
        inverse = np.linalg.inv(box)
        low, span = np.zeros(3), np.ones(3)
        for d in np.flatnonzero(images == 0):
            values = position @ inverse[:, d]
            low[d] = values.min()
            span[d] = max(values.max() - low[d], 1e-3) * (1 + 1e-9)
        lengths = span / np.linalg.norm(inverse, axis=0)  # heights of the region that holds particles
        width = COLUMN_WIDTH * (np.prod(lengths) / n) ** (1 / 3)
        grid = np.maximum(1, np.rint(lengths[:2] / width)).astype(np.int64)
        self.blocks = np.maximum(1, np.rint(lengths / (BLOCK_REACHES * self.reach))).astype(np.int64)
        farthest = (np.abs(box) * (span / self.blocks)[:, None]).sum(axis=0).max() + 2 * self.reach  # between origins that meet
        self._quantum = 2.0 ** (math.ceil(math.log2(farthest)) - np.finfo(self.dtype).nmant - 1)
        frac, wrap, column = np.empty((n, 3)), np.empty((n, 3), np.int32), np.empty(n, np.int64)
        _fractions(position, inverse, images, grid, low, span, frac, wrap, column)
        cells = int(grid.prod())
        first, filled, order = np.zeros(cells + 1, np.int64), np.zeros(cells + 1, np.int64), np.empty(n, np.int64)
        slots = _count_columns(column, first, filled, order)
        self.slots, self.grid, self.first, self.height, self.wrap = slots, grid, first, lengths, wrap
        self.atom_of_slot, self.slot_of_atom = np.empty(slots, np.int32), np.empty(n, np.int32)
        _fill_columns(frac, first, filled, order, self.atom_of_slot, self.slot_of_atom)
        halves = slots // 4
        self.bounds = tuple(
            np.empty(shape) for shape in ((halves, 6), (slots // 8, 6), (halves, 3), (halves, 3), (slots // 8, 3))
        )
        self.holds, self.origin, self.base = np.empty(halves, np.int8), np.empty((slots // 8, 4)), np.empty((slots, 3))
        args = (self.atom_of_slot, *self.bounds, self.holds, self.blocks, low, span, self._quantum, self.origin)
        _bound(position, wrap, frac, box, state.owned, *args)
        self.x, self.y, self.z = (np.empty(slots, self.dtype) for _ in range(3))

    def _exclude(self, state: State) -> None:
        """Find the image under which excluded partners are nearest; rows of partners are made once."""
        if len(self._partner_first) == 0:
            self._partner_first, self._partner = partners(self.exclusions, len(state.position_n3))
            self._partner_image = np.zeros(len(self._partner), np.int64)
        place = (state.position_n3, self.wrap, box_of(state))
        _nearest(*place, self._partner_first, self._partner, self._partner_image)

    def _rows(self, images: Any) -> None:
        i_clusters = self.slots // 4
        need = np.zeros((self.chunks, 2), np.int64)
        self.row_first = np.empty((i_clusters, 2), np.int64)
        if self._tiles == 0:
            self._grow(16 * (i_clusters // self.chunks + 16), 64 * (i_clusters // self.chunks + 16))
        while True:
            where = (self.x, self.y, self.z, self._even, images, self.grid, self.height, self.reach, self.first)
            boxes = (*self.bounds, self.holds, self.origin)
            excluded = (self.atom_of_slot, self.slot_of_atom, self._partner_first, self._partner, self._partner_image)
            _build(where, boxes, excluded, self.row_first, self.run_range, self.run_image, self.j_list, self.j_mask, need)
            runs, tiles = need.max(axis=0)
            if runs <= self._runs and tiles <= self._tiles:
                break
            self._grow(int(1.3 * max(runs, self._runs)), int(1.3 * max(tiles, self._tiles)))
        self.tiles = int(need[:, 1].sum())
        share = np.concatenate([[0], np.cumsum(need[:, 1])]) / max(1, self.tiles)
        self.parts = np.searchsorted(share, np.arange(self.threads + 1) / self.threads, side="left").astype(np.int64)
        self.parts[0], self.parts[-1] = 0, self.chunks

    def _grow(self, runs: int, tiles: int) -> None:
        self._runs, self._tiles = runs, tiles
        self.j_list, self.j_mask = np.empty((self.chunks, tiles), np.int32), np.empty((self.chunks, tiles), np.uint32)
        self.run_range, self.run_image = np.empty((self.chunks, runs, 3), np.int32), np.empty((self.chunks, runs), np.int8)
        self.run_shift = np.empty((self.chunks, runs, 3), self.dtype)
