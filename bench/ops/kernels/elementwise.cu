// Operators that take each element by itself: arithmetic, conversion, activations, selection, dropout.
// Kernels named *_float4 and *_half2 move 4 or 2 elements at a time and want n to be a multiple of that.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

__device__ __forceinline__ float relu(float x) { return fmaxf(x, 0.0f); }
__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }
__device__ __forceinline__ float gelu_by_tanh(float x) {
    float inner = 0.79788456080286536f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1.0f + tanhf(inner));
}
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }

// One thread an element; four elements a thread; a grid of any size that strides over all elements, two at a time.
#define ACTIVATION(NAME, EXPRESSION)                                                                                          \
    extern "C" __global__ void NAME##_naive(const float* x, float* y, int n) {                                                \
        int i = blockIdx.x * blockDim.x + threadIdx.x;                                                                        \
        if (i < n) y[i] = EXPRESSION(x[i]);                                                                                   \
    }                                                                                                                         \
    extern "C" __global__ void NAME##_float4(const float4* __restrict__ x, float4* __restrict__ y, int n) {                   \
        int i = blockIdx.x * blockDim.x + threadIdx.x;                                                                        \
        if (i < n / 4) {                                                                                                      \
            float4 v = x[i];                                                                                                  \
            y[i] = make_float4(EXPRESSION(v.x), EXPRESSION(v.y), EXPRESSION(v.z), EXPRESSION(v.w));                           \
        }                                                                                                                     \
    }                                                                                                                         \
    extern "C" __global__ void NAME##_stride(const float* __restrict__ x, float* __restrict__ y, int n) {                     \
        int step = gridDim.x * blockDim.x;                                                                                    \
        int i = blockIdx.x * blockDim.x + threadIdx.x;                                                                        \
        for (; i + step < n; i += 2 * step) {                                                                                 \
            float first = x[i], second = x[i + step];                                                                         \
            y[i] = EXPRESSION(first);                                                                                         \
            y[i + step] = EXPRESSION(second);                                                                                 \
        }                                                                                                                     \
        if (i < n) y[i] = EXPRESSION(x[i]);                                                                                   \
    }

ACTIVATION(relu, relu)
ACTIVATION(gelu, gelu)
ACTIVATION(silu, silu)
ACTIVATION(tanh, tanhf)
ACTIVATION(sigmoid, sigmoid)
ACTIVATION(exp, expf)
ACTIVATION(log, logf)

extern "C" __global__ void gelu_tanh(const float* x, float* y, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) y[i] = gelu_by_tanh(x[i]);
}

// c = alpha a + b
extern "C" __global__ void elementwise_naive(const float* a, const float* b, float* c, float alpha, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) c[i] = alpha * a[i] + b[i];
}

extern "C" __global__ void elementwise_stride(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ c,
                                              float alpha, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) c[i] = alpha * a[i] + b[i];
}

extern "C" __global__ void elementwise_float4(const float4* __restrict__ a, const float4* __restrict__ b, float4* __restrict__ c,
                                              float alpha, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n / 4) {
        float4 p = a[i], q = b[i];
        c[i] = make_float4(alpha * p.x + q.x, alpha * p.y + q.y, alpha * p.z + q.z, alpha * p.w + q.w);
    }
}

extern "C" __global__ void elementwise_half2(const __half2* a, const __half2* b, __half2* c, float alpha, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n / 2) c[i] = __hfma2(__float2half2_rn(alpha), a[i], b[i]);
}

extern "C" __global__ void cast_naive(const float* x, __half* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = __float2half_rn(x[i]);
}

extern "C" __global__ void cast_float4(const float4* x, __half2* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n / 4) {
        float4 v = x[i];
        y[2 * i] = __floats2half2_rn(v.x, v.y);
        y[2 * i + 1] = __floats2half2_rn(v.z, v.w);
    }
}

extern "C" __global__ void cast_bf16(const float* x, __nv_bfloat16* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = __float2bfloat16_rn(x[i]);
}

extern "C" __global__ void clamp_naive(const float* x, float* y, float low, float high, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] < low ? low : x[i] > high ? high : x[i];
}

extern "C" __global__ void clamp_float4(const float4* __restrict__ x, float4* __restrict__ y, float low, float high, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n / 4) {
        float4 v = x[i];
        v.x = fminf(fmaxf(v.x, low), high);
        v.y = fminf(fmaxf(v.y, low), high);
        v.z = fminf(fmaxf(v.z, low), high);
        v.w = fminf(fmaxf(v.w, low), high);
        y[i] = v;
    }
}

// y = a where mask, else b
extern "C" __global__ void select_naive(const uint8_t* mask, const float* a, const float* b, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        if (mask[i])
            y[i] = a[i];
        else
            y[i] = b[i];
    }
}

extern "C" __global__ void select_float4(const uchar4* __restrict__ mask, const float4* __restrict__ a, const float4* __restrict__ b,
                                         float4* __restrict__ y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n / 4) {
        uchar4 m = mask[i];
        float4 p = a[i], q = b[i];
        y[i] = make_float4(m.x ? p.x : q.x, m.y ? p.y : q.y, m.z ? p.z : q.z, m.w ? p.w : q.w);
    }
}

// Philox4x32-10 of Salmon et al., SC'11: four random words for a counter and a key.
__device__ __forceinline__ uint4 philox(uint4 counter, uint32_t key_x, uint32_t key_y) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        uint32_t high_x = __umulhi(0xD2511F53u, counter.x), low_x = 0xD2511F53u * counter.x;
        uint32_t high_z = __umulhi(0xCD9E8D57u, counter.z), low_z = 0xCD9E8D57u * counter.z;
        counter = make_uint4(high_z ^ counter.y ^ key_x, low_z, high_x ^ counter.w ^ key_y, low_x);
        key_x += 0x9E3779B9u;
        key_y += 0xBB67AE85u;
    }
    return counter;
}

// Element i is kept when word i % 4 of the block i / 4 is at least `rate` times 2^32; what is kept is divided by 1 - rate.
__device__ __forceinline__ float kept(float x, uint32_t word, float rate, float factor) {
    return (word >> 8) * 5.9604644775390625e-8f >= rate ? x * factor : 0.0f;
}

extern "C" __global__ void dropout_naive(const float* x, float* y, float rate, uint32_t seed_low, uint32_t seed_high, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint4 random = philox(make_uint4(i / 4, 0, 0, 0), seed_low, seed_high);
    uint32_t word = i % 4 == 0 ? random.x : i % 4 == 1 ? random.y : i % 4 == 2 ? random.z : random.w;
    y[i] = kept(x[i], word, rate, 1.0f / (1.0f - rate));
}

extern "C" __global__ void dropout_float4(const float4* __restrict__ x, float4* __restrict__ y, float rate, uint32_t seed_low,
                                          uint32_t seed_high, int n) {
    float factor = 1.0f / (1.0f - rate);
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n / 4; i += gridDim.x * blockDim.x) {
        uint4 random = philox(make_uint4(i, 0, 0, 0), seed_low, seed_high);
        float4 v = x[i];
        y[i] = make_float4(kept(v.x, random.x, rate, factor), kept(v.y, random.y, rate, factor),
                           kept(v.z, random.z, rate, factor), kept(v.w, random.w, rate, factor));
    }
}
