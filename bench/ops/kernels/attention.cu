// Attention over q, k, v[heads][n][d] with the given scale, and rotary positions.
#include <math.h>

#include "warp.cuh"

// One block a query (grid x) of a head (grid y); the scores in dynamic shared memory, n floats. `group` query heads share a key head.
__device__ __forceinline__ void attend_plainly(const float* q, const float* k, const float* v, float* y, float scale, int n, int d,
                                               int group, bool causal) {
    extern __shared__ float score[];
    __shared__ float scratch[32];
    int query = blockIdx.x, head = blockIdx.y, keys = causal ? query + 1 : n;
    const float* mine = q + (head * n + query) * d;
    const float* all_k = k + (head / group) * n * d;
    const float* all_v = v + (head / group) * n * d;
    float most = -INFINITY, total = 0.0f;
    for (int j = threadIdx.x; j < keys; j += blockDim.x) {
        float dot = 0.0f;
        for (int i = 0; i < d; ++i) dot += mine[i] * all_k[j * d + i];
        score[j] = dot * scale;
        most = fmaxf(most, score[j]);
    }
    most = block_max(most, scratch);
    for (int j = threadIdx.x; j < keys; j += blockDim.x) {
        score[j] = expf(score[j] - most);
        total += score[j];
    }
    total = block_sum(total, scratch);
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        float sum = 0.0f;
        for (int j = 0; j < keys; ++j) sum += score[j] * all_v[j * d + i];
        y[(head * n + query) * d + i] = sum / total;
    }
}

extern "C" __global__ void attention_naive(const float* q, const float* k, const float* v, float* y, float scale, int n, int d) {
    attend_plainly(q, k, v, y, scale, n, d, 1, false);
}

extern "C" __global__ void attention_causal_naive(const float* q, const float* k, const float* v, float* y, float scale, int n, int d) {
    attend_plainly(q, k, v, y, scale, n, d, 1, true);
}

extern "C" __global__ void attention_gqa_naive(const float* q, const float* k, const float* v, float* y, float scale, int n, int d,
                                               int group) {
    attend_plainly(q, k, v, y, scale, n, d, group, false);
}

// One thread a query, 32 queries a block, d = 32: tiles of 32 keys in shared memory, maximum and sum kept along the way (Dao et al. 2022).
__device__ __forceinline__ void attend_in_tiles(const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
                                                float* __restrict__ y, float scale, int n, int group, bool causal) {
    __shared__ float tile_k[32][32], tile_v[32][32];
    int t = threadIdx.x, query = blockIdx.x * 32 + t, head = blockIdx.y;
    size_t mine = ((size_t)head * n + query) * 32, others = (size_t)(head / group) * n * 32;
    float query_d[32], sum[32], most = -INFINITY, total = 0.0f;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
        query_d[i] = query < n ? q[mine + i] * scale : 0.0f;
        sum[i] = 0.0f;
    }
    int last = causal ? min(n, (int)blockIdx.x * 32 + 32) : n;
    for (int start = 0; start < last; start += 32) {
        for (int row = 0; row < 32; ++row) {
            bool there = start + row < n;
            tile_k[row][t] = there ? k[others + (start + row) * 32 + t] : 0.0f;
            tile_v[row][t] = there ? v[others + (start + row) * 32 + t] : 0.0f;
        }
        __syncthreads();
        int keys = min(32, n - start);
        for (int j = 0; j < keys; ++j) {
            if (causal && start + j > query) break;
            float dot = 0.0f;
#pragma unroll
            for (int i = 0; i < 32; ++i) dot += query_d[i] * tile_k[j][i];
            float next = fmaxf(most, dot), fade = expf(most - next), weight = expf(dot - next);
            total = total * fade + weight;
#pragma unroll
            for (int i = 0; i < 32; ++i) sum[i] = sum[i] * fade + weight * tile_v[j][i];
            most = next;
        }
        __syncthreads();
    }
    if (query >= n) return;
#pragma unroll
    for (int i = 0; i < 32; ++i) y[mine + i] = sum[i] / total;
}

extern "C" __global__ void attention_tile(const float* q, const float* k, const float* v, float* y, float scale, int n, int d) {
    attend_in_tiles(q, k, v, y, scale, n, 1, false);
}

extern "C" __global__ void attention_causal_tile(const float* q, const float* k, const float* v, float* y, float scale, int n, int d) {
    attend_in_tiles(q, k, v, y, scale, n, 1, true);
}

extern "C" __global__ void attention_gqa_tile(const float* q, const float* k, const float* v, float* y, float scale, int n, int d,
                                              int group) {
    attend_in_tiles(q, k, v, y, scale, n, group, false);
}

// Pairs (2i, 2i + 1) of x[n][heads][d] turned by the angle of position and pair, given as cosine[n][d / 2] and sine[n][d / 2].
extern "C" __global__ void rotary_naive(const float* x, const float* cosine, const float* sine, float* y, int n, int heads, int d) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n * heads * d) return;
    int place = i / (heads * d), pair = i % d / 2;
    float c = cosine[place * (d / 2) + pair], s = sine[place * (d / 2) + pair];
    y[i] = i % 2 == 0 ? x[i] * c - x[i + 1] * s : x[i] * c + x[i - 1] * s;
}

// One block a position; a thread turns a pair.
extern "C" __global__ void rotary_float2(const float2* __restrict__ x, const float* __restrict__ cosine, const float* __restrict__ sine,
                                         float2* __restrict__ y, int n, int heads, int d) {
    int half = d / 2;
    size_t base = (size_t)blockIdx.x * heads * half;
    for (int i = threadIdx.x; i < heads * half; i += blockDim.x) {
        float c = cosine[blockIdx.x * half + i % half], s = sine[blockIdx.x * half + i % half];
        float2 v = x[base + i];
        y[base + i] = make_float2(v.x * c - v.y * s, v.y * c + v.x * s);
    }
}
