// Kernels that use as many kinds of machine instructions as possible; test_sass runs them from PTX and from machine code.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

__constant__ float table[64] = {1, 2, 3, 4, 5};
__device__ int counts[16] = {1, 2, 3};
__device__ int calls = 5;
__device__ int left_to_the_host;
__constant__ float filled_by_the_host[4];

struct Options {
    float a[5];
    int n;
    double d;
};

__noinline__ __device__ float horner(float x, int n) {
    float s = 0;
    for (int i = 0; i < n; i++) s = s * x + i;
    return s;
}

extern "C" {
__global__ void constants(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] * table[i & 63] + table[3] + counts[i & 15];
}

__global__ void local_array(const int* x, int* y, int n) {
    int a[32];
    for (int k = 0; k < 32; k++) a[k] = x[k];
    for (int k = 0; k < n; k++) {
        int t = a[k & 31];
        a[(k * 7 + t) & 31] += t;
    }
    for (int k = 0; k < 32; k++) y[k] = a[k];
}

__global__ void integer_division(const int* x, const int* z, int* y, long long* w, const long long* v) {
    int i = threadIdx.x;
    y[i] = x[i] / z[i] + x[i] % z[i] + x[i] % 7 + (unsigned)x[i] / 10u;
    w[i] = w[i] / v[i] + (unsigned long long)w[i] % (unsigned long long)v[i] + __clzll(v[i]) + __popc(x[i]);
}

__global__ void double_math(const double* x, double* y) {
    int i = threadIdx.x;
    y[i] = x[i] / x[i + 32] + sqrt(x[i]) + exp(x[i]) * 3.25 + 1.0 / x[i] + floor(x[i]) + fmin(x[i], 0.5);
}

__global__ void double_extremes(const double* a, const double* b, double* c, double* d) {
    int i = threadIdx.x;
    c[i] = fmin(a[i], b[i]);
    d[i] = fmax(a[i], b[i]);
}

__global__ void half_pairs(const __half2* x, __half2* y) {
    int i = threadIdx.x;
    __half2 v = __hfma2(x[i], x[i + 1], __float2half2_rn(1.5f));
    v = __hadd2(v, __half2half2(__low2half(x[i + 2])));
    if (__hlt(__low2half(v), __high2half(v))) v = __hmul2(v, __hmax2(v, x[i + 3]));
    __nv_bfloat16 b = __float2bfloat16(__low2float(v) * 2.f);
    y[i] = __floats2half2_rn(__bfloat162float(b), __high2float(v) * 3);
}

__global__ void generic_space(int* x, int f) {
    __shared__ int s[64];
    int* p = f ? x : s;
    p[threadIdx.x] = threadIdx.x * 3;
    __syncthreads();
    x[threadIdx.x] = p[63 - threadIdx.x];
}

__global__ void atomics(unsigned* z, int* q, const int* a, const float* x, float* sums) {
    __shared__ unsigned long long least;
    __shared__ int count;
    __shared__ float total;
    if (threadIdx.x == 0) {
        least = ~0ull;
        count = 0;
        total = 0;
    }
    __syncthreads();
    atomicMin(&least, (unsigned long long)(unsigned)a[threadIdx.x] << 32 | threadIdx.x);
    atomicAdd(&count, 3);
    atomicAdd(&total, truncf(x[threadIdx.x]));
    atomicInc(z, 7u);
    atomicDec(z + 1, 9u);
    atomicAnd(z + 2, ~(1u << (threadIdx.x & 31)));
    atomicXor(z + 3, threadIdx.x);
    atomicMax((int*)z + 4, a[threadIdx.x]);
    atomicAdd(sums + 1, truncf(x[threadIdx.x]));
    int old = q[3], as;
    do {
        as = old;
        old = atomicCAS(q + 3, as, as + a[threadIdx.x]);
    } while (old != as);
    __syncthreads();
    if (threadIdx.x == 0) {
        q[0] = count;
        q[1] = (int)least;
        q[2] = (int)(least >> 32);
        sums[0] = total;
    }
}

__global__ void conversions(const float* x, int* y, unsigned char* b, long long* l, const float* d, double* e) {
    int i = threadIdx.x;
    y[i] = (int)x[i] + __float2int_rn(x[i]) + (unsigned)fabsf(x[i]) + (short)(x[i] * 50);
    b[i] = (unsigned char)fabsf(x[i]);
    l[i] = (long long)d[i] + (long long)(double)(x[i] * 1e3f);
    e[i] = (double)l[i] + x[i] + y[i] + (double)(unsigned long long)l[i] + (signed char)b[i];
}

__global__ void warp(int* x, float* y, int* z) {
    int i = threadIdx.x;
    unsigned mask = __ballot_sync(~0u, x[i] > 3);
    int v = __popc(mask & ((1u << (i & 31)) - 1));
    if (__any_sync(~0u, x[i] == 7)) y[i] = __shfl_up_sync(~0u, y[i], 3);
    y[i] += __shfl_sync(~0u, y[i], v & 31) + __shfl_down_sync(~0u, y[i], 2) + __shfl_xor_sync(~0u, y[i], 5, 8);
    unsigned same = __match_any_sync(~0u, v);
    z[i] = same + __reduce_add_sync(~0u, v) + __reduce_max_sync(~0u, x[i]) + __activemask() + __reduce_and_sync(~0u, v);
    if (i > 5) z[i] = __byte_perm(z[i], same, 0x3412) + __brev(same) + __ffs(same);
}

__global__ void jump_table(const int* x, int* y) {
    int i = threadIdx.x;
    switch (x[i]) {
        case 0: y[i] = 5; break;
        case 1: y[i] += x[3]; break;
        case 2: y[i] = i * 7; break;
        case 3: y[i] = x[i + 4] % 3; break;
        case 4: y[i] ^= x[4]; break;
        case 5: y[i] = 1 + x[i + 1]; break;
        case 6: y[i] = __clz(x[i]); break;
        case 7: y[i] = __ffs(x[2]); break;
        default: y[i] = -1;
    }
}

__global__ void not_inlined(const float* x, float* y, int n) {
    y[threadIdx.x] = horner(x[threadIdx.x], n) + horner(x[1], 3);
}

__global__ void wide_integers(const unsigned long long* a, const long long* b, unsigned long long* o, long long* p, unsigned s) {
    int i = threadIdx.x;
    unsigned long long x = a[i];
    long long y = b[i], z = b[i + 32];
    o[i] = x * y + (x >> s) + (x << (s + 7)) + (x > (unsigned long long)y ? x : y);
    p[i] = (y >> s) - (long long)x + (y < z) + llabs(y) + __mul64hi(y, z) + (y >= -5 && x <= 99ull) + (long long)__umul64hi(x, a[i + 32]);
}

__global__ void single_math(const float* x, float* y) {
    int i = threadIdx.x;
    float a = x[i], b = x[i + 32];
    float s = __saturatef(a) + fminf(fmaxf(a, -1.f), 2.f) + copysignf(a, b) + (isnan(a) ? 1 : 0) + rsqrtf(fabsf(a));
    s += __frcp_rn(a) + a / b + truncf(a) + ceilf(a) + exp2f(a) + logf(fabsf(a)) + sinf(a) + tanhf(b) + powf(fabsf(a), b);
    y[i] = s + __fadd_ru(a, 1e-9f) + __fmul_rd(a, b) + __fsqrt_rn(fabsf(a)) + erff(a) + fmodf(a, b) + fabsf(a) * -b;
}

__global__ void logic(const int* a, int* b) {
    int i = threadIdx.x;
    int x = a[i], y = a[i + 32];
    int r = (x << 3 | y >> 5) ^ ~(x & y) | (x > 7) * 3;
    r += max(min(x, 255), 0) + ((unsigned)x >> (y & 31)) + ((x >> 4) & 0xff) + __clz(x) + __hadd(x, y) + __funnelshift_l(x, y, r);
    b[i] = r + __dp4a(x, y, r) + __mulhi(x, y) + abs(x) + (int)__usad(x, y, 3) + __vadd4(x, y);
}

__global__ void early_return(const float* x, float* y, int n) {
    float s = 0;
    for (const float* p = x + threadIdx.x; p < x + n; p += 32) {
        float v = *p;
        if (v < 0) continue;
        if (v > 3.9f) break;
        s += v;
        if (s > 50) {
            s = s / 2;
            if (s > 30) return;
        }
    }
    y[threadIdx.x] = s;
}

__global__ void structure(Options o, float* y) {
    int i = threadIdx.x;
    if (i < o.n) y[i] = o.a[1] * i + o.a[4] + o.d;
    if (i == 40) y[i] = o.a[0];
}

__global__ void host_variable(int* x) { x[threadIdx.x] = atomicAdd(&left_to_the_host, 1); }

__global__ void counting(float* x) {
    if (x[threadIdx.x] > 3) x[threadIdx.x] = atomicAdd(&calls, 1);
}

__global__ void host_constant(float* x) { x[threadIdx.x] = filled_by_the_host[threadIdx.x & 3]; }

__global__ void quotient(const float* a, const float* b, float* c) { c[threadIdx.x] = a[threadIdx.x] / b[threadIdx.x]; }

__global__ void reciprocal(const float* a, const float* b, float* c) { c[threadIdx.x] = 1 / b[threadIdx.x]; }

__global__ void by_seven(const float* a, const float* b, float* c) { c[threadIdx.x] = b[threadIdx.x] / 7; }

__global__ void root(const float* a, const float* b, float* c) { c[threadIdx.x] = sqrtf(b[threadIdx.x]); }

__global__ void signs(const float* a, const float* b, float* c) { c[threadIdx.x] = copysignf(a[threadIdx.x], b[threadIdx.x]); }

__global__ void division(const float* a, const float* b, float* c) { c[threadIdx.x] = a[threadIdx.x] / b[threadIdx.x]; }
}
