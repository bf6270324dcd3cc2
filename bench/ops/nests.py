"""Hand-written loop nests, continued: matrices, windows, moves, places that depend on data, physics. See `hand`."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

loop = njit(parallel=True, fastmath={"contract", "reassoc", "nsz", "arcp", "afn"}, cache=True, error_model="numpy")
ONE = np.float32(1)
LOWEST = np.float32(-np.inf)


@loop
def gemv(a, x, y, m, n):
    for row in prange(m):
        total = np.float32(0)
        for i in range(n):
            total += a[row, i] * x[i]
        y[row] = total


@loop
def int8_gemm(x, w, scale, y, m, n, k):
    for column in prange(n):
        for row in range(m):
            total = np.float32(0)
            for i in range(k):
                total += x[row, i] * np.float32(w[column, i])
            y[row, column] = total * scale[column]


@loop
def int4_gemm(x, w, scale, y, m, n, k):
    for column in prange(n):
        wide = np.empty(k, np.float32)
        for i in range(k // 2):
            wide[2 * i] = np.float32(w[column, i] & 15) - np.float32(8)
            wide[2 * i + 1] = np.float32(w[column, i] >> 4) - np.float32(8)
        for row in range(m):
            total = np.float32(0)
            for i in range(k):
                total += x[row, i] * wide[i]
            y[row, column] = total * scale[column]


@loop
def outer(a, b, c, m, n):
    for row in prange(m):
        for i in range(n):
            c[row, i] = a[row] * b[i]


@loop
def conv1d(x, w, bias, y, channels, width, outputs, taps, padding):
    places = y.shape[2]
    for item in prange(x.shape[0] * outputs):
        b, o = item // outputs, item % outputs
        for p in range(places):
            y[b, o, p] = bias[o]
        for c in range(channels):
            for t in range(taps):
                weight, first, last = w[o, c, t], max(0, padding - t), min(places, width + padding - t)
                for p in range(first, last):
                    y[b, o, p] += weight * x[b, c, p + t - padding]


@loop
def depthwise(x, w, y, channels, height, width, taps, padding):
    rows, columns = y.shape[2], y.shape[3]
    for item in prange(x.shape[0] * channels):
        b, c = item // channels, item % channels
        for row in range(rows):
            for q in range(columns):
                y[b, c, row, q] = 0
            for i in range(max(0, padding - row), min(taps, height + padding - row)):
                for j in range(taps):
                    weight = w[c, i, j]
                    for q in range(max(0, padding - j), min(columns, width + padding - j)):
                        y[b, c, row, q] += weight * x[b, c, row + i - padding, q + j - padding]


@loop
def maxpool(x, y, height, width, size, stride):
    for p in prange(x.shape[0]):
        for row in range(y.shape[1]):
            for q in range(y.shape[2]):
                upper = max(x[p, 2 * row, 2 * q], x[p, 2 * row, 2 * q + 1])
                y[p, row, q] = max(upper, max(x[p, 2 * row + 1, 2 * q], x[p, 2 * row + 1, 2 * q + 1]))


@loop
def avgpool(x, y, height, width, size, stride):
    quarter = np.float32(0.25)
    for p in prange(x.shape[0]):
        for row in range(y.shape[1]):
            for q in range(y.shape[2]):
                upper = x[p, 2 * row, 2 * q] + x[p, 2 * row, 2 * q + 1]
                y[p, row, q] = quarter * (upper + x[p, 2 * row + 1, 2 * q] + x[p, 2 * row + 1, 2 * q + 1])


@loop
def transpose(x, y, rows, columns):
    for tile in prange(-(-columns // 16)):
        for start in range(0, rows, 64):
            for c in range(16 * tile, min(16 * tile + 16, columns)):
                for r in range(start, min(start + 64, rows)):
                    y[c, r] = x[r, c]


@loop
def concat(a, b, y, rows, na, nb):
    for row in prange(rows):
        for i in range(na):
            y[row, i] = a[row, i]
        for i in range(nb):
            y[row, na + i] = b[row, i]


@loop
def pad(x, y, value, height, width, rim):
    for p in prange(x.shape[0]):
        for row in range(y.shape[1]):
            inside = rim <= row < height + rim
            for q in range(rim):
                y[p, row, q] = value
                y[p, row, width + rim + q] = value
            for q in range(width):
                y[p, row, rim + q] = x[p, row - rim, q] if inside else value


@loop
def im2col(x, y, channels, height, width, taps, padding):
    rows, columns = y.shape[3], y.shape[4]
    for c in prange(channels):
        for i in range(taps):
            for j in range(taps):
                for row in range(rows):
                    r = row + i - padding
                    if 0 <= r < height:
                        first, last = max(0, padding - j), min(columns, width + padding - j)
                        for q in range(first):
                            y[c, i, j, row, q] = 0
                        for q in range(first, last):
                            y[c, i, j, row, q] = x[c, r, q + j - padding]
                        for q in range(last, columns):
                            y[c, i, j, row, q] = 0
                    else:
                        for q in range(columns):
                            y[c, i, j, row, q] = 0


@loop
def resize(x, y, height, width, rows, columns):
    near, far = np.float32(0.75), np.float32(0.25)
    for item in prange(x.shape[0] * height):
        p, r = item // height, item % height
        above, below = max(r - 1, 0), min(r + 1, height - 1)
        side = np.empty(width, np.float32)
        for i in range(2):
            other = above if i == 0 else below
            for c in range(width):
                side[c] = near * x[p, r, c] + far * x[p, other, c]
            row = 2 * r + i
            y[p, row, 0] = side[0]
            y[p, row, columns - 1] = side[width - 1]
            for c in range(width - 1):
                y[p, row, 2 * c + 1] = near * side[c] + far * side[c + 1]
                y[p, row, 2 * c + 2] = far * side[c] + near * side[c + 1]


@loop
def histogram(x, counts, bins, n):
    parts = 4
    part = np.zeros((parts, 4, bins), np.int32)
    for p in prange(parts):
        mine = part[p]
        first, last = p * (n // 4) // parts, (p + 1) * (n // 4) // parts
        for i in range(first, last):
            mine[0, x[4 * i]] += 1
            mine[1, x[4 * i + 1]] += 1
            mine[2, x[4 * i + 2]] += 1
            mine[3, x[4 * i + 3]] += 1
    for i in range(n // 4 * 4, n):
        counts[x[i]] += 1
    for p in range(parts):
        for lane in range(4):
            for b in range(bins):
                counts[b] += part[p, lane, b]


@loop
def topk(x, values, places, rows, n, k):
    for row in prange(rows):
        for j in range(k):
            values[row, j] = LOWEST
        for i in range(n):
            v = x[row, i]
            if v > values[row, k - 1]:
                j = k - 1
                while j > 0 and values[row, j - 1] < v:
                    values[row, j] = values[row, j - 1]
                    places[row, j] = places[row, j - 1]
                    j -= 1
                values[row, j] = v
                places[row, j] = i


@loop
def gather(x, places, y, n):
    for i in prange(n):
        y[i] = x[places[i]]


@loop
def scatter_add(x, places, y, rows, width):
    half = width // 2
    for part in prange(2):
        for row in range(rows):
            target = places[row]
            for i in range(part * half, (part + 1) * half):
                y[target, i] += x[row, i]


@loop
def embedding(table, words, y, rows, width):
    for row in prange(rows):
        word = words[row]
        for i in range(width):
            y[row, i] = table[word, i]


@loop
def spmv(start, column, value, x, y, rows):
    for row in prange(rows):
        total = np.float32(0)
        for i in range(start[row], start[row + 1]):
            total += value[i] * x[column[i]]
        y[row] = total


@loop
def rotary(x, cosine, sine, y, n, heads, d):
    for place in prange(n):
        for h in range(heads):
            for i in range(d // 2):
                a, b = x[place, h, 2 * i], x[place, h, 2 * i + 1]
                y[place, h, 2 * i] = a * cosine[place, i] - b * sine[place, i]
                y[place, h, 2 * i + 1] = b * cosine[place, i] + a * sine[place, i]


@njit(parallel=True, fastmath={"contract", "nsz", "arcp"}, cache=True, error_model="numpy")
def adamw(p, g, m, v, rate, beta1, beta2, eps, decay, correction1, correction2, n):
    for i in prange(n):
        first = beta1 * m[i] + (ONE - beta1) * g[i]
        second = beta2 * v[i] + (ONE - beta2) * g[i] * g[i]
        p[i] -= rate * (first / correction1 / (np.sqrt(second / correction2) + eps) + decay * p[i])
        m[i] = first
        v[i] = second


@loop
def quantise(x, q, scale, rows, n):
    for row in prange(rows):
        most = np.float32(0)
        for i in range(n):
            most = max(most, abs(x[row, i]))
        factor = np.float32(127) / most
        for i in range(n):
            q[row, i] = np.int8(np.rint(x[row, i] * factor))
        scale[row] = most / np.float32(127)


@loop
def stencil3d(x, y, c, nz, ny, nx):
    edge = np.zeros(nx, np.float32)
    for item in prange(nz * ny):
        k, j = item // ny, item % ny
        here = x[k, j]
        left, right = (x[k, j - 1] if j > 0 else edge), (x[k, j + 1] if j < ny - 1 else edge)
        before, behind = (x[k - 1, j] if k > 0 else edge), (x[k + 1, j] if k < nz - 1 else edge)
        six = np.float32(6)
        for i in range(1, nx - 1):
            sides = left[i] + right[i] + before[i] + behind[i] + here[i - 1] + here[i + 1]
            y[k, j, i] = here[i] + c * (sides - six * here[i])
        for i in (0, nx - 1):
            sides = left[i] + right[i] + before[i] + behind[i] + (here[1] if i == 0 else here[nx - 2])
            y[k, j, i] = here[i] + c * (sides - six * here[i])


@loop
def nbody(body, a, eps2, n):
    x, y, z, mass = body[:, 0].copy(), body[:, 1].copy(), body[:, 2].copy(), body[:, 3].copy()
    for i in prange(n):
        ax, ay, az = np.float32(0), np.float32(0), np.float32(0)
        for j in range(n):
            dx, dy, dz = x[j] - x[i], y[j] - y[i], z[j] - z[i]
            inverse = ONE / np.sqrt(dx * dx + dy * dy + dz * dz + eps2)
            factor = mass[j] * inverse * inverse * inverse
            ax += factor * dx
            ay += factor * dy
            az += factor * dz
        a[i, 0] = ax
        a[i, 1] = ay
        a[i, 2] = az
        a[i, 3] = 0


@loop
def fft_stage(x, w, y, n, l):
    half = n // 2
    for item in prange(x.shape[0] * (half // l)):
        b, m = item // (half // l), item % (half // l) * l
        for j in range(l):
            re = x[b, m + j + half, 0] * w[j, 0] - x[b, m + j + half, 1] * w[j, 1]
            im = x[b, m + j + half, 0] * w[j, 1] + x[b, m + j + half, 1] * w[j, 0]
            y[b, 2 * m + j, 0] = x[b, m + j, 0] + re
            y[b, 2 * m + j, 1] = x[b, m + j, 1] + im
            y[b, 2 * m + j + l, 0] = x[b, m + j, 0] - re
            y[b, 2 * m + j + l, 1] = x[b, m + j, 1] - im


@loop
def tridiagonal(lower, diagonal, upper, right, x, work, n, systems):
    chunk = 64
    for part in prange(-(-systems // chunk)):
        first, last = part * chunk, min(systems, part * chunk + chunk)
        for s in range(first, last):
            inverse = ONE / diagonal[0, s]
            work[0, s] = upper[0, s] * inverse
            x[0, s] = right[0, s] * inverse
        for i in range(1, n):
            for s in range(first, last):
                inverse = ONE / (diagonal[i, s] - lower[i, s] * work[i - 1, s])
                work[i, s] = upper[i, s] * inverse
                x[i, s] = (right[i, s] - lower[i, s] * x[i - 1, s]) * inverse
        for i in range(n - 2, -1, -1):
            for s in range(first, last):
                x[i, s] -= work[i, s] * x[i + 1, s]
