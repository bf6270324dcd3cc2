// Contractions; matrices are row-major. gemm: C[m][n] = A[m][k] B[k][n].
#include <cuda_fp16.h>
#include <stdint.h>

#include "warp.cuh"

// y[m] = A[m][n] x[n], one thread a row.
extern "C" __global__ void gemv_naive(const float* a, const float* x, float* y, int m, int n) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= m) return;
    float total = 0.0f;
    for (int i = 0; i < n; ++i) total += a[row * n + i] * x[i];
    y[row] = total;
}

// One warp a row, four elements a load (n a multiple of 4), blockDim.x / 32 rows a block.
extern "C" __global__ void gemv_warp(const float4* __restrict__ a, const float4* __restrict__ x, float* __restrict__ y, int m, int n) {
    int row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (row >= m) return;
    float total = 0.0f;
    for (int i = lane; i < n / 4; i += 32) {
        float4 p = a[(size_t)row * (n / 4) + i], q = x[i];
        total += p.x * q.x + p.y * q.y + p.z * q.z + p.w * q.w;
    }
    total = warp_sum(total);
    if (lane == 0) y[row] = total;
}

extern "C" __global__ void gemm_naive(const float* a, const float* b, float* c, int m, int n, int k) {
    int row = blockIdx.y * blockDim.y + threadIdx.y, column = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= m || column >= n) return;
    float total = 0.0f;
    for (int i = 0; i < k; ++i) total += a[row * k + i] * b[i * n + column];
    c[row * n + column] = total;
}

// Tiles of 16 x 16 in shared memory, block 16 x 16.
extern "C" __global__ void gemm_tile(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ c, int m, int n, int k) {
    __shared__ float tile_a[16][16], tile_b[16][17];
    int ty = threadIdx.y, tx = threadIdx.x, row = blockIdx.y * 16 + ty, column = blockIdx.x * 16 + tx;
    float total = 0.0f;
    for (int start = 0; start < k; start += 16) {
        tile_a[ty][tx] = row < m && start + tx < k ? a[row * k + start + tx] : 0.0f;
        tile_b[ty][tx] = start + ty < k && column < n ? b[(start + ty) * n + column] : 0.0f;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 16; ++i) total += tile_a[ty][i] * tile_b[i][tx];
        __syncthreads();
    }
    if (row < m && column < n) c[row * n + column] = total;
}

// A block of 16 x 16 threads makes 64 x 64 results, each thread 4 x 4 in registers; steps of 16 along k.
extern "C" __global__ void gemm_register(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ c, int m, int n,
                                         int k) {
    __shared__ float tile_a[16][64], tile_b[16][64];
    int tx = threadIdx.x, ty = threadIdx.y, t = ty * 16 + tx;
    int row = blockIdx.y * 64, column = blockIdx.x * 64;
    float sum[4][4] = {};
    for (int start = 0; start < k; start += 16) {
        for (int i = t; i < 1024; i += 256) {
            int r = i / 16, s = i % 16;
            tile_a[s][r] = row + r < m && start + s < k ? a[(row + r) * k + start + s] : 0.0f;
        }
        for (int i = t; i < 1024; i += 256) {
            int s = i / 64, q = i % 64;
            tile_b[s][q] = start + s < k && column + q < n ? b[(start + s) * n + column + q] : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int s = 0; s < 16; ++s) {
            float p[4], q[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                p[i] = tile_a[s][ty * 4 + i];
                q[i] = tile_b[s][tx * 4 + i];
            }
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[i][j] += p[i] * q[j];
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (row + ty * 4 + i < m && column + tx * 4 + j < n) c[(row + ty * 4 + i) * n + column + tx * 4 + j] = sum[i][j];
}

// Half-precision factors, products summed in single precision.
extern "C" __global__ void gemm_half(const __half* a, const __half* b, __half* c, int m, int n, int k) {
    int row = blockIdx.y * blockDim.y + threadIdx.y, column = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= m || column >= n) return;
    float total = 0.0f;
    for (int i = 0; i < k; ++i) total += __half2float(a[row * k + i]) * __half2float(b[i * n + column]);
    c[row * n + column] = __float2half_rn(total);
}

// c[z] = a[z] b[z] for each z < grid.z
extern "C" __global__ void batched_gemm_naive(const float* a, const float* b, float* c, int m, int n, int k) {
    int row = blockIdx.y * blockDim.y + threadIdx.y, column = blockIdx.x * blockDim.x + threadIdx.x, z = blockIdx.z;
    if (row >= m || column >= n) return;
    float total = 0.0f;
    for (int i = 0; i < k; ++i) total += a[(z * m + row) * k + i] * b[(z * k + i) * n + column];
    c[(z * m + row) * n + column] = total;
}

extern "C" __global__ void batched_gemm_tile(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ c, int m,
                                             int n, int k) {
    __shared__ float tile_a[16][16], tile_b[16][17];
    int ty = threadIdx.y, tx = threadIdx.x, row = blockIdx.y * 16 + ty, column = blockIdx.x * 16 + tx;
    const float* from_a = a + (size_t)blockIdx.z * m * k;
    const float* from_b = b + (size_t)blockIdx.z * k * n;
    float total = 0.0f;
    for (int start = 0; start < k; start += 16) {
        tile_a[ty][tx] = row < m && start + tx < k ? from_a[row * k + start + tx] : 0.0f;
        tile_b[ty][tx] = start + ty < k && column < n ? from_b[(start + ty) * n + column] : 0.0f;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 16; ++i) total += tile_a[ty][i] * tile_b[i][tx];
        __syncthreads();
    }
    if (row < m && column < n) c[((size_t)blockIdx.z * m + row) * n + column] = total;
}

// y[m][n] = x[m][k] (w[n][k] scale[n]): weights of 8 bits with a scale for each output.
extern "C" __global__ void int8_gemm_naive(const float* x, const int8_t* w, const float* scale, float* y, int m, int n, int k) {
    int row = blockIdx.y * blockDim.y + threadIdx.y, column = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= m || column >= n) return;
    float total = 0.0f;
    for (int i = 0; i < k; ++i) total += x[row * k + i] * (float)w[column * k + i];
    y[row * n + column] = total * scale[column];
}

// One warp a result, four weights a load (k a multiple of 4); block 32 x 4, results x along n, y along m.
extern "C" __global__ void int8_gemm_warp(const float4* __restrict__ x, const char4* __restrict__ w, const float* __restrict__ scale,
                                          float* __restrict__ y, int m, int n, int k) {
    int column = blockIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= m) return;
    float total = 0.0f;
    for (int i = threadIdx.x; i < k / 4; i += 32) {
        float4 p = x[(size_t)row * (k / 4) + i];
        char4 q = w[(size_t)column * (k / 4) + i];
        total += p.x * q.x + p.y * q.y + p.z * q.z + p.w * q.w;
    }
    total = warp_sum(total);
    if (threadIdx.x == 0) y[row * n + column] = total * scale[column];
}

// Weights of 4 bits, two a byte, the even place in the low half, 8 standing for zero.
extern "C" __global__ void int4_gemm_naive(const float* x, const uint8_t* w, const float* scale, float* y, int m, int n, int k) {
    int row = blockIdx.y * blockDim.y + threadIdx.y, column = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= m || column >= n) return;
    float total = 0.0f;
    for (int i = 0; i < k; i += 2) {
        uint8_t pair = w[column * (k / 2) + i / 2];
        total += x[row * k + i] * (float)((pair & 15) - 8) + x[row * k + i + 1] * (float)((pair >> 4) - 8);
    }
    y[row * n + column] = total * scale[column];
}

// One warp a result, eight weights a load (k a multiple of 8); block 32 x 4.
extern "C" __global__ void int4_gemm_warp(const float4* __restrict__ x, const uint32_t* __restrict__ w, const float* __restrict__ scale,
                                          float* __restrict__ y, int m, int n, int k) {
    int column = blockIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= m) return;
    float total = 0.0f;
    for (int i = threadIdx.x; i < k / 8; i += 32) {
        uint32_t q = w[(size_t)column * (k / 8) + i];
        float4 p = x[(size_t)row * (k / 4) + 2 * i], r = x[(size_t)row * (k / 4) + 2 * i + 1];
        total += p.x * ((int)(q & 15) - 8) + p.y * ((int)(q >> 4 & 15) - 8) + p.z * ((int)(q >> 8 & 15) - 8);
        total += p.w * ((int)(q >> 12 & 15) - 8) + r.x * ((int)(q >> 16 & 15) - 8) + r.y * ((int)(q >> 20 & 15) - 8);
        total += r.z * ((int)(q >> 24 & 15) - 8) + r.w * ((int)(q >> 28) - 8);
    }
    total = warp_sum(total);
    if (threadIdx.x == 0) y[row * n + column] = total * scale[column];
}

// c[m][n] = a[m] b[n]
extern "C" __global__ void outer_naive(const float* a, const float* b, float* c, int m, int n) {
    int row = blockIdx.y * blockDim.y + threadIdx.y, column = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < m && column < n) c[row * n + column] = a[row] * b[column];
}

// One block a row and 4 columns a thread (n a multiple of 4).
extern "C" __global__ void outer_float4(const float* __restrict__ a, const float4* __restrict__ b, float4* __restrict__ c, int m, int n) {
    float scale = a[blockIdx.y];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n / 4) {
        float4 v = b[i];
        c[(size_t)blockIdx.y * (n / 4) + i] = make_float4(scale * v.x, scale * v.y, scale * v.z, scale * v.w);
    }
}
