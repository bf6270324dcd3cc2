// Operators of training and compression: cross-entropy, AdamW, quantisation to 8 bits.
#include <math.h>
#include <stdint.h>

#include "warp.cuh"

// loss[row] = log sum exp x[row][:] - x[row][target[row]]; one thread a row.
extern "C" __global__ void cross_entropy_naive(const float* x, const int* target, float* loss, int rows, int n) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float most = -INFINITY, total = 0.0f;
    for (int i = 0; i < n; ++i) most = fmaxf(most, x[row * n + i]);
    for (int i = 0; i < n; ++i) total += expf(x[row * n + i] - most);
    loss[row] = most + logf(total) - x[row * n + target[row]];
}

// One block a row.
extern "C" __global__ void cross_entropy_warp(const float* __restrict__ x, const int* __restrict__ target, float* __restrict__ loss,
                                              int rows, int n) {
    __shared__ float scratch[32];
    const float* row = x + (size_t)blockIdx.x * n;
    float most = -INFINITY, total = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) most = fmaxf(most, row[i]);
    most = block_max(most, scratch);
    for (int i = threadIdx.x; i < n; i += blockDim.x) total += expf(row[i] - most);
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) loss[blockIdx.x] = most + logf(total) - row[target[blockIdx.x]];
}

struct Step {
    float rate, beta1, beta2, eps, decay, correction1, correction2;
};

// Loshchilov and Hutter 2019; correction = 1 - beta^step.
__device__ __forceinline__ float stepped(float p, float g, float& m, float& v, Step s) {
    m = s.beta1 * m + (1.0f - s.beta1) * g;
    v = s.beta2 * v + (1.0f - s.beta2) * g * g;
    return p - s.rate * (m / s.correction1 / (sqrtf(v / s.correction2) + s.eps) + s.decay * p);
}

// Parameters and moments in place.
extern "C" __global__ void adamw_naive(float* p, const float* g, float* m, float* v, float rate, float beta1, float beta2, float eps,
                                       float decay, float correction1, float correction2, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    Step step = {rate, beta1, beta2, eps, decay, correction1, correction2};
    p[i] = stepped(p[i], g[i], m[i], v[i], step);
}

// In place, four at a time (n a multiple of 4).
extern "C" __global__ void adamw_float4(float4* __restrict__ p, const float4* __restrict__ g, float4* __restrict__ m,
                                        float4* __restrict__ v, float rate, float beta1, float beta2, float eps, float decay,
                                        float correction1, float correction2, int n) {
    Step step = {rate, beta1, beta2, eps, decay, correction1, correction2};
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n / 4; i += gridDim.x * blockDim.x) {
        float4 a = p[i], b = g[i], c = m[i], d = v[i];
        a.x = stepped(a.x, b.x, c.x, d.x, step);
        a.y = stepped(a.y, b.y, c.y, d.y, step);
        a.z = stepped(a.z, b.z, c.z, d.z, step);
        a.w = stepped(a.w, b.w, c.w, d.w, step);
        p[i] = a;
        m[i] = c;
        v[i] = d;
    }
}

// New parameters and moments to other arrays.
extern "C" __global__ void adamw_apart(const float* p, const float* g, const float* m, const float* v, float* new_p, float* new_m,
                                       float* new_v, float rate, float beta1, float beta2, float eps, float decay, float correction1,
                                       float correction2, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    Step step = {rate, beta1, beta2, eps, decay, correction1, correction2};
    float first = m[i], second = v[i];
    new_p[i] = stepped(p[i], g[i], first, second, step);
    new_m[i] = first;
    new_v[i] = second;
}

// q[row][i] = x / scale[row] rounded to even, scale = largest |x| / 127. One thread a row.
extern "C" __global__ void quantise_naive(const float* x, int8_t* q, float* scale, int rows, int n) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float most = 0.0f;
    for (int i = 0; i < n; ++i) most = fmaxf(most, fabsf(x[row * n + i]));
    scale[row] = most / 127.0f;
    float factor = most > 0.0f ? 127.0f / most : 0.0f;
    for (int i = 0; i < n; ++i) q[row * n + i] = (int8_t)rintf(x[row * n + i] * factor);
}

// One block a row, four at a time (n a multiple of 4).
extern "C" __global__ void quantise_char4(const float4* __restrict__ x, char4* __restrict__ q, float* __restrict__ scale, int rows, int n) {
    __shared__ float scratch[32];
    const float4* from = x + (size_t)blockIdx.x * (n / 4);
    float most = 0.0f;
    for (int i = threadIdx.x; i < n / 4; i += blockDim.x) {
        float4 v = from[i];
        most = fmaxf(most, fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))));
    }
    most = block_max(most, scratch);
    float factor = most > 0.0f ? 127.0f / most : 0.0f;
    for (int i = threadIdx.x; i < n / 4; i += blockDim.x) {
        float4 v = from[i];
        q[(size_t)blockIdx.x * (n / 4) + i] = make_char4((signed char)__float2int_rn(v.x * factor), (signed char)__float2int_rn(v.y * factor),
                                                         (signed char)__float2int_rn(v.z * factor), (signed char)__float2int_rn(v.w * factor));
    }
    if (threadIdx.x == 0) scale[blockIdx.x] = most / 127.0f;
}
