// Operators whose places depend on data: histogram, largest k, sort, gather, scatter, embedding, sparse matrix times vector.
#include <math.h>

#include "warp.cuh"

// counts[x[i]] += 1; values outside 0 ... bins - 1 do not count.
extern "C" __global__ void histogram_naive(const int* x, int* counts, int bins, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && x[i] >= 0 && x[i] < bins) atomicAdd(&counts[x[i]], 1);
}

// At most 256 bins, counted in shared memory first.
extern "C" __global__ void histogram_shared(const int* __restrict__ x, int* counts, int bins, int n) {
    __shared__ int part[256];
    for (int i = threadIdx.x; i < bins; i += blockDim.x) part[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        int bin = x[i];
        if (bin >= 0 && bin < bins) atomicAdd(&part[bin], 1);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < bins; i += blockDim.x)
        if (part[i]) atomicAdd(&counts[i], part[i]);
}

// The k largest of each row in falling order, the earlier place first among equals. One thread a row.
extern "C" __global__ void topk_naive(const float* x, float* values, int* places, int rows, int n, int k) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float last = INFINITY;
    int last_place = -1;
    for (int j = 0; j < k; ++j) {
        float most = -INFINITY;
        int best = n;
        for (int i = 0; i < n; ++i) {
            float v = x[row * n + i];
            bool left = v < last || (v == last && i > last_place);
            if (left && v > most) {
                most = v;
                best = i;
            }
        }
        values[row * k + j] = last = most;
        places[row * k + j] = last_place = best;
    }
}

// One warp a row, one row a block of 32 threads.
extern "C" __global__ void topk_warp(const float* __restrict__ x, float* __restrict__ values, int* __restrict__ places, int rows,
                                     int n, int k) {
    const float* row = x + (size_t)blockIdx.x * n;
    float last = INFINITY;
    int last_place = -1;
    for (int j = 0; j < k; ++j) {
        float most = -INFINITY;
        int best = n;
        for (int i = threadIdx.x; i < n; i += 32) {
            float v = row[i];
            if ((v < last || (v == last && i > last_place)) && v > most) {
                most = v;
                best = i;
            }
        }
        for (int offset = 16; offset > 0; offset >>= 1) {
            float other = __shfl_xor_sync(0xffffffffu, most, offset);
            int place = __shfl_xor_sync(0xffffffffu, best, offset);
            if (other > most || (other == most && place < best)) {
                most = other;
                best = place;
            }
        }
        if (threadIdx.x == 0) {
            values[blockIdx.x * k + j] = most;
            places[blockIdx.x * k + j] = best;
        }
        last = most;
        last_place = best;
    }
}

// Rising order in each row: the place of an element is the number of those that come before it.
extern "C" __global__ void sort_naive(const float* x, float* y, int rows, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
    if (i >= n) return;
    float v = x[row * n + i];
    int place = 0;
    for (int j = 0; j < n; ++j) {
        float other = x[row * n + j];
        place += other < v || (other == v && j < i);
    }
    y[row * n + place] = v;
}

// Bitonic network in shared memory: one block a row, rows of at most 1024, threads = half the next power of two.
extern "C" __global__ void sort_bitonic(const float* __restrict__ x, float* __restrict__ y, int rows, int n) {
    __shared__ float part[1024];
    int width = 2 * blockDim.x;
    for (int i = threadIdx.x; i < width; i += blockDim.x) part[i] = i < n ? x[(size_t)blockIdx.x * n + i] : INFINITY;
    __syncthreads();
    for (int size = 2; size <= width; size <<= 1) {
        for (int step = size >> 1; step > 0; step >>= 1) {
            int low = 2 * threadIdx.x - (threadIdx.x & (step - 1));
            float a = part[low], b = part[low + step];
            bool rising = (low & size) == 0;
            part[low] = rising ? fminf(a, b) : fmaxf(a, b);
            part[low + step] = rising ? fmaxf(a, b) : fminf(a, b);
            __syncthreads();
        }
    }
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[(size_t)blockIdx.x * n + i] = part[i];
}

// y[i] = x[places[i]]
extern "C" __global__ void gather_naive(const float* x, const int* places, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[places[i]];
}

extern "C" __global__ void gather_int4(const float* __restrict__ x, const int4* __restrict__ places, float4* __restrict__ y, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n / 4; i += gridDim.x * blockDim.x) {
        int4 p = places[i];
        y[i] = make_float4(x[p.x], x[p.y], x[p.z], x[p.w]);
    }
}

// y[places[row]][:] += x[row][:]
extern "C" __global__ void scatter_add_naive(const float* x, const int* places, float* y, int rows, int width) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < rows * width) atomicAdd(&y[places[i / width] * width + i % width], x[i]);
}

extern "C" __global__ void scatter_add_row(const float* __restrict__ x, const int* __restrict__ places, float* y, int rows, int width) {
    const float* from = x + (size_t)blockIdx.x * width;
    float* to = y + (size_t)places[blockIdx.x] * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) atomicAdd(to + i, from[i]);
}

// y[row][:] = table[words[row]][:]
extern "C" __global__ void embedding_naive(const float* table, const int* words, float* y, int rows, int width) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < rows * width) y[i] = table[words[i / width] * width + i % width];
}

// One block a row, width a multiple of 4.
extern "C" __global__ void embedding_float4(const float4* __restrict__ table, const int* __restrict__ words, float4* __restrict__ y,
                                            int rows, int width) {
    const float4* from = table + (size_t)words[blockIdx.x] * (width / 4);
    float4* to = y + (size_t)blockIdx.x * (width / 4);
    for (int i = threadIdx.x; i < width / 4; i += blockDim.x) to[i] = from[i];
}

// y = A x, A in compressed rows. One thread a row.
extern "C" __global__ void spmv_naive(const int* start, const int* column, const float* value, const float* x, float* y, int rows) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float total = 0.0f;
    for (int i = start[row]; i < start[row + 1]; ++i) total += value[i] * x[column[i]];
    y[row] = total;
}

// One warp a row.
extern "C" __global__ void spmv_warp(const int* __restrict__ start, const int* __restrict__ column, const float* __restrict__ value,
                                     const float* __restrict__ x, float* __restrict__ y, int rows) {
    int row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (row >= rows) return;
    float total = 0.0f;
    for (int i = start[row] + lane; i < start[row + 1]; i += 32) total += value[i] * x[column[i]];
    total = warp_sum(total);
    if (lane == 0) y[row] = total;
}
