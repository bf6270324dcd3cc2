// Normalisations. softmax, layernorm, rmsnorm along the rows of x[rows][n]; batchnorm over batch and places of each channel,
// groupnorm over the channels of a group and places, x[batch][channels][places]. Variances are those of the sample (divided by its size).
#include <cuda_bf16.h>
#include <math.h>

#include "warp.cuh"

// One thread a row.
extern "C" __global__ void softmax_naive(const float* x, float* y, int rows, int n) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float most = -INFINITY, total = 0.0f;
    for (int i = 0; i < n; ++i) most = fmaxf(most, x[row * n + i]);
    for (int i = 0; i < n; ++i) total += expf(x[row * n + i] - most);
    for (int i = 0; i < n; ++i) y[row * n + i] = expf(x[row * n + i] - most) / total;
}

// One warp a row, blockDim.x / 32 rows a block.
extern "C" __global__ void softmax_warp(const float* __restrict__ x, float* __restrict__ y, int rows, int n) {
    int row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (row >= rows) return;
    const float* from = x + (size_t)row * n;
    float* to = y + (size_t)row * n;
    float most = -INFINITY, total = 0.0f;
    for (int i = lane; i < n; i += 32) most = fmaxf(most, from[i]);
    most = warp_max(most);
    for (int i = lane; i < n; i += 32) total += expf(from[i] - most);
    float factor = 1.0f / warp_sum(total);
    for (int i = lane; i < n; i += 32) to[i] = expf(from[i] - most) * factor;
}

// One block a row; the exponentials wait in (dynamic) shared memory, n floats.
extern "C" __global__ void softmax_shared(const float* __restrict__ x, float* __restrict__ y, int rows, int n) {
    extern __shared__ float held[];
    __shared__ float scratch[32];
    const float* from = x + (size_t)blockIdx.x * n;
    float* to = y + (size_t)blockIdx.x * n;
    float most = -INFINITY, total = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) most = fmaxf(most, held[i] = from[i]);
    most = block_max(most, scratch);
    for (int i = threadIdx.x; i < n; i += blockDim.x) total += held[i] = expf(held[i] - most);
    total = block_sum(total, scratch);
    for (int i = threadIdx.x; i < n; i += blockDim.x) to[i] = held[i] / total;
}

// One thread a row, maximum and sum in one pass (Milakov and Gimelshein 2018).
extern "C" __global__ void softmax_online(const float* x, float* y, int rows, int n) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float most = -INFINITY, total = 0.0f;
    for (int i = 0; i < n; ++i) {
        float v = x[row * n + i], next = fmaxf(most, v);
        total = total * expf(most - next) + expf(v - next);
        most = next;
    }
    for (int i = 0; i < n; ++i) y[row * n + i] = expf(x[row * n + i] - most) / total;
}

extern "C" __global__ void softmax_bf16(const __nv_bfloat16* x, __nv_bfloat16* y, int rows, int n) {
    __shared__ float scratch[32];
    const __nv_bfloat16* from = x + (size_t)blockIdx.x * n;
    __nv_bfloat16* to = y + (size_t)blockIdx.x * n;
    float most = -INFINITY, total = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) most = fmaxf(most, __bfloat162float(from[i]));
    most = block_max(most, scratch);
    for (int i = threadIdx.x; i < n; i += blockDim.x) total += expf(__bfloat162float(from[i]) - most);
    total = block_sum(total, scratch);
    for (int i = threadIdx.x; i < n; i += blockDim.x) to[i] = __float2bfloat16_rn(expf(__bfloat162float(from[i]) - most) / total);
}

extern "C" __global__ void layernorm_naive(const float* x, const float* gain, const float* bias, float* y, float eps, int rows, int n) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float mean = 0.0f, variance = 0.0f;
    for (int i = 0; i < n; ++i) mean += x[row * n + i];
    mean /= n;
    for (int i = 0; i < n; ++i) {
        float d = x[row * n + i] - mean;
        variance += d * d;
    }
    float factor = 1.0f / sqrtf(variance / n + eps);
    for (int i = 0; i < n; ++i) y[row * n + i] = (x[row * n + i] - mean) * factor * gain[i] + bias[i];
}

// One block a row, sum and sum of squares in one pass.
extern "C" __global__ void layernorm_warp(const float* __restrict__ x, const float* __restrict__ gain, const float* __restrict__ bias,
                                          float* __restrict__ y, float eps, int rows, int n) {
    __shared__ float scratch[32];
    const float* from = x + (size_t)blockIdx.x * n;
    float* to = y + (size_t)blockIdx.x * n;
    float total = 0.0f, squares = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float v = from[i];
        total += v;
        squares += v * v;
    }
    float mean = block_sum(total, scratch) / n;
    float variance = block_sum(squares, scratch) / n - mean * mean;
    float factor = rsqrtf(variance + eps);
    for (int i = threadIdx.x; i < n; i += blockDim.x) to[i] = (from[i] - mean) * factor * gain[i] + bias[i];
}

extern "C" __global__ void rmsnorm_naive(const float* x, const float* gain, float* y, float eps, int rows, int n) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float squares = 0.0f;
    for (int i = 0; i < n; ++i) squares += x[row * n + i] * x[row * n + i];
    float factor = 1.0f / sqrtf(squares / n + eps);
    for (int i = 0; i < n; ++i) y[row * n + i] = x[row * n + i] * factor * gain[i];
}

// One warp a row, four elements a load (n a multiple of 4).
extern "C" __global__ void rmsnorm_warp(const float4* __restrict__ x, const float4* __restrict__ gain, float4* __restrict__ y, float eps,
                                        int rows, int n) {
    int row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (row >= rows) return;
    const float4* from = x + (size_t)row * (n / 4);
    float4* to = y + (size_t)row * (n / 4);
    float squares = 0.0f;
    for (int i = lane; i < n / 4; i += 32) {
        float4 v = from[i];
        squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    float factor = rsqrtf(warp_sum(squares) / n + eps);
    for (int i = lane; i < n / 4; i += 32) {
        float4 v = from[i], g = gain[i];
        to[i] = make_float4(v.x * factor * g.x, v.y * factor * g.y, v.z * factor * g.z, v.w * factor * g.w);
    }
}

// One thread a channel.
extern "C" __global__ void batchnorm_naive(const float* x, const float* gain, const float* bias, float* y, float eps, int batch,
                                           int channels, int places) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    float mean = 0.0f, variance = 0.0f;
    for (int b = 0; b < batch; ++b)
        for (int p = 0; p < places; ++p) mean += x[(b * channels + c) * places + p];
    mean /= batch * places;
    for (int b = 0; b < batch; ++b)
        for (int p = 0; p < places; ++p) {
            float d = x[(b * channels + c) * places + p] - mean;
            variance += d * d;
        }
    float factor = gain[c] / sqrtf(variance / (batch * places) + eps);
    for (int b = 0; b < batch; ++b)
        for (int p = 0; p < places; ++p) {
            int i = (b * channels + c) * places + p;
            y[i] = (x[i] - mean) * factor + bias[c];
        }
}

// One block a channel.
extern "C" __global__ void batchnorm_block(const float* __restrict__ x, const float* __restrict__ gain, const float* __restrict__ bias,
                                           float* __restrict__ y, float eps, int batch, int channels, int places) {
    __shared__ float scratch[32];
    int c = blockIdx.x;
    float total = 0.0f, squares = 0.0f;
    for (int b = 0; b < batch; ++b)
        for (int p = threadIdx.x; p < places; p += blockDim.x) {
            float v = x[((size_t)b * channels + c) * places + p];
            total += v;
            squares += v * v;
        }
    float mean = block_sum(total, scratch) / (batch * places);
    float variance = block_sum(squares, scratch) / (batch * places) - mean * mean;
    float factor = gain[c] * rsqrtf(variance + eps), shift = bias[c] - mean * factor;
    for (int b = 0; b < batch; ++b)
        for (int p = threadIdx.x; p < places; p += blockDim.x) {
            size_t i = ((size_t)b * channels + c) * places + p;
            y[i] = x[i] * factor + shift;
        }
}

// One thread a group of a sample; a group holds `width` channels.
extern "C" __global__ void groupnorm_naive(const float* x, const float* gain, const float* bias, float* y, float eps, int batch,
                                           int channels, int places, int width) {
    int index = blockIdx.x * blockDim.x + threadIdx.x, n = width * places;
    if (index >= batch * channels / width) return;
    float mean = 0.0f, variance = 0.0f;
    for (int i = 0; i < n; ++i) mean += x[index * n + i];
    mean /= n;
    for (int i = 0; i < n; ++i) {
        float d = x[index * n + i] - mean;
        variance += d * d;
    }
    float factor = 1.0f / sqrtf(variance / n + eps);
    for (int i = 0; i < n; ++i) {
        int c = (index * width) % channels + i / places;
        y[index * n + i] = (x[index * n + i] - mean) * factor * gain[c] + bias[c];
    }
}

// One block a group (x) of a sample (y).
extern "C" __global__ void groupnorm_block(const float* __restrict__ x, const float* __restrict__ gain, const float* __restrict__ bias,
                                           float* __restrict__ y, float eps, int batch, int channels, int places, int width) {
    __shared__ float scratch[32];
    int first = blockIdx.x * width, n = width * places;
    size_t base = ((size_t)blockIdx.y * channels + first) * places;
    float total = 0.0f, squares = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float v = x[base + i];
        total += v;
        squares += v * v;
    }
    float mean = block_sum(total, scratch) / n;
    float factor = rsqrtf(block_sum(squares, scratch) / n - mean * mean + eps);
    for (int c = 0; c < width; ++c) {
        float scale = gain[first + c] * factor, shift = bias[first + c] - mean * scale;
        for (int p = threadIdx.x; p < places; p += blockDim.x) y[base + c * places + p] = x[base + c * places + p] * scale + shift;
    }
}
