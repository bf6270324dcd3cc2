// Reductions and scans along the rows of x[rows][n], each result a number (or a place) a row.
#include <math.h>

#include "warp.cuh"

// One thread a row.
extern "C" __global__ void sum_naive(const float* x, float* y, int rows, int n) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float total = 0.0f;
    for (int i = 0; i < n; ++i) total += x[row * n + i];
    y[row] = total;
}

// One block a row, tree in shared memory; blocks of 256 threads.
extern "C" __global__ void sum_shared(const float* x, float* y, int rows, int n) {
    __shared__ float part[256];
    int t = threadIdx.x;
    float total = 0.0f;
    for (int i = t; i < n; i += blockDim.x) total += x[(size_t)blockIdx.x * n + i];
    part[t] = total;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half >>= 1) {
        if (t < half) part[t] += part[t + half];
        __syncthreads();
    }
    if (t == 0) y[blockIdx.x] = part[0];
}

// One block a row, four elements a load (n a multiple of 4), warp shuffles.
extern "C" __global__ void sum_warp(const float4* __restrict__ x, float* __restrict__ y, int rows, int n) {
    __shared__ float scratch[32];
    const float4* row = x + (size_t)blockIdx.x * (n / 4);
    float total = 0.0f;
    for (int i = threadIdx.x; i < n / 4; i += blockDim.x) {
        float4 v = row[i];
        total += (v.x + v.y) + (v.z + v.w);
    }
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) y[blockIdx.x] = total;
}

extern "C" __global__ void max_naive(const float* x, float* y, int rows, int n) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float most = x[row * n];
    for (int i = 1; i < n; ++i) most = fmaxf(most, x[row * n + i]);
    y[row] = most;
}

extern "C" __global__ void max_warp(const float* __restrict__ x, float* __restrict__ y, int rows, int n) {
    __shared__ float scratch[32];
    const float* row = x + (size_t)blockIdx.x * n;
    float most = -INFINITY;
    for (int i = threadIdx.x; i < n; i += blockDim.x) most = fmaxf(most, row[i]);
    most = block_max(most, scratch);
    if (threadIdx.x == 0) y[blockIdx.x] = most;
}

// The first place of the largest element.
extern "C" __global__ void argmax_naive(const float* x, int* y, int rows, int n) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    int best = 0;
    for (int i = 1; i < n; ++i)
        if (x[row * n + i] > x[row * n + best]) best = i;
    y[row] = best;
}

// One warp a row, blockDim.x / 32 rows a block.
extern "C" __global__ void argmax_warp(const float* __restrict__ x, int* __restrict__ y, int rows, int n) {
    int row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (row >= rows) return;
    float most = -INFINITY;
    int best = n;
    for (int i = lane; i < n; i += 32) {
        float v = x[(size_t)row * n + i];
        if (v > most) {
            most = v;
            best = i;
        }
    }
    for (int offset = 16; offset > 0; offset >>= 1) {
        float other = __shfl_down_sync(0xffffffffu, most, offset);
        int place = __shfl_down_sync(0xffffffffu, best, offset);
        if (other > most || (other == most && place < best)) {
            most = other;
            best = place;
        }
    }
    if (lane == 0) y[row] = best;
}

// Euclidean norm.
extern "C" __global__ void norm_naive(const float* x, float* y, int rows, int n) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float total = 0.0f;
    for (int i = 0; i < n; ++i) total += x[row * n + i] * x[row * n + i];
    y[row] = sqrtf(total);
}

extern "C" __global__ void norm_warp(const float4* __restrict__ x, float* __restrict__ y, int rows, int n) {
    __shared__ float scratch[32];
    const float4* row = x + (size_t)blockIdx.x * (n / 4);
    float total = 0.0f;
    for (int i = threadIdx.x; i < n / 4; i += blockDim.x) {
        float4 v = row[i];
        total += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) y[blockIdx.x] = sqrtf(total);
}

extern "C" __global__ void logsumexp_naive(const float* x, float* y, int rows, int n) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float most = -INFINITY, total = 0.0f;
    for (int i = 0; i < n; ++i) most = fmaxf(most, x[row * n + i]);
    for (int i = 0; i < n; ++i) total += expf(x[row * n + i] - most);
    y[row] = most + logf(total);
}

extern "C" __global__ void logsumexp_warp(const float* __restrict__ x, float* __restrict__ y, int rows, int n) {
    __shared__ float scratch[32];
    const float* row = x + (size_t)blockIdx.x * n;
    float most = -INFINITY, total = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) most = fmaxf(most, row[i]);
    most = block_max(most, scratch);
    for (int i = threadIdx.x; i < n; i += blockDim.x) total += expf(row[i] - most);
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) y[blockIdx.x] = most + logf(total);
}

// Inclusive sums along each row.
extern "C" __global__ void scan_naive(const float* x, float* y, int rows, int n) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float total = 0.0f;
    for (int i = 0; i < n; ++i) {
        total += x[row * n + i];
        y[row * n + i] = total;
    }
}

// One block a row: doubling steps in shared memory over chunks of 256, the sum so far carried on.
extern "C" __global__ void scan_shared(const float* __restrict__ x, float* __restrict__ y, int rows, int n) {
    __shared__ float part[256];
    const float* from = x + (size_t)blockIdx.x * n;
    float* to = y + (size_t)blockIdx.x * n;
    int t = threadIdx.x;
    float carry = 0.0f;
    for (int start = 0; start < n; start += 256) {
        part[t] = start + t < n ? from[start + t] : 0.0f;
        __syncthreads();
        for (int offset = 1; offset < 256; offset <<= 1) {
            float before = t >= offset ? part[t - offset] : 0.0f;
            __syncthreads();
            part[t] += before;
            __syncthreads();
        }
        if (start + t < n) to[start + t] = carry + part[t];
        carry += part[255];
        __syncthreads();
    }
}

// One block a row: shuffles within each warp, then over the sums of the warps.
extern "C" __global__ void scan_warp(const float* __restrict__ x, float* __restrict__ y, int rows, int n) {
    __shared__ float sums[32];
    const float* from = x + (size_t)blockIdx.x * n;
    float* to = y + (size_t)blockIdx.x * n;
    int t = threadIdx.x, lane = t & 31, warp = t >> 5, warps = blockDim.x >> 5;
    float carry = 0.0f;
    for (int start = 0; start < n; start += blockDim.x) {
        float v = start + t < n ? from[start + t] : 0.0f;
        for (int offset = 1; offset < 32; offset <<= 1) {
            float before = __shfl_up_sync(0xffffffffu, v, offset);
            if (lane >= offset) v += before;
        }
        if (lane == 31) sums[warp] = v;
        __syncthreads();
        float below = 0.0f, all = 0.0f;
        for (int w = 0; w < warps; ++w) {
            if (w < warp) below += sums[w];
            all += sums[w];
        }
        if (start + t < n) to[start + t] = carry + below + v;
        carry += all;
        __syncthreads();
    }
}
