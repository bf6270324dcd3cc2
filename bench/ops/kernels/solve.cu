// Numerical kernels of physics: stencil, N-body forces, a stage of a Fourier transform, tridiagonal systems.
#include <math.h>

// y = x + c (sum of the six neighbours - 6 x), zero around the box; x[nz][ny][nx].
extern "C" __global__ void stencil3d_naive(const float* x, float* y, float c, int nz, int ny, int nx) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, j = blockIdx.y * blockDim.y + threadIdx.y, k = blockIdx.z;
    if (i >= nx || j >= ny) return;
    int at = (k * ny + j) * nx + i;
    float sum = -6.0f * x[at];
    if (i > 0) sum += x[at - 1];
    if (i < nx - 1) sum += x[at + 1];
    if (j > 0) sum += x[at - nx];
    if (j < ny - 1) sum += x[at + nx];
    if (k > 0) sum += x[at - nx * ny];
    if (k < nz - 1) sum += x[at + nx * ny];
    y[at] = x[at] + c * sum;
}

// Block 16 x 16 marches along z: the plane in shared memory with its rim, the planes before and behind in registers.
extern "C" __global__ void stencil3d_march(const float* __restrict__ x, float* __restrict__ y, float c, int nz, int ny, int nx) {
    __shared__ float plane[18][18];
    int tx = threadIdx.x + 1, ty = threadIdx.y + 1, i = blockIdx.x * 16 + threadIdx.x, j = blockIdx.y * 16 + threadIdx.y;
    bool inside = i < nx && j < ny;
    size_t area = (size_t)nx * ny, at = (size_t)j * nx + i;
    float before = 0.0f, here = inside ? x[at] : 0.0f;
    for (int k = 0; k < nz; ++k) {
        float behind = inside && k + 1 < nz ? x[at + area] : 0.0f;
        plane[ty][tx] = here;
        if (threadIdx.x == 0) plane[ty][0] = i > 0 && j < ny ? x[at - 1] : 0.0f;
        if (threadIdx.x == 15) plane[ty][17] = i + 1 < nx && j < ny ? x[at + 1] : 0.0f;
        if (threadIdx.y == 0) plane[0][tx] = j > 0 && i < nx ? x[at - nx] : 0.0f;
        if (threadIdx.y == 15) plane[17][tx] = j + 1 < ny && i < nx ? x[at + nx] : 0.0f;
        __syncthreads();
        float sum = plane[ty][tx - 1] + plane[ty][tx + 1] + plane[ty - 1][tx] + plane[ty + 1][tx] + before + behind - 6.0f * here;
        if (inside) y[at] = here + c * sum;
        before = here;
        here = behind;
        at += area;
        __syncthreads();
    }
}

// Accelerations a[n] (x, y, z, 0) of bodies (x, y, z, mass), softened by eps2. One thread a body.
extern "C" __global__ void nbody_naive(const float* body, float* a, float eps2, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float ax = 0.0f, ay = 0.0f, az = 0.0f;
    for (int j = 0; j < n; ++j) {
        float dx = body[4 * j] - body[4 * i], dy = body[4 * j + 1] - body[4 * i + 1], dz = body[4 * j + 2] - body[4 * i + 2];
        float r2 = dx * dx + dy * dy + dz * dz + eps2;
        float factor = body[4 * j + 3] / (r2 * sqrtf(r2));
        ax += factor * dx;
        ay += factor * dy;
        az += factor * dz;
    }
    a[4 * i] = ax;
    a[4 * i + 1] = ay;
    a[4 * i + 2] = az;
    a[4 * i + 3] = 0.0f;
}

// Tiles of 128 bodies in shared memory, blocks of 128 threads.
extern "C" __global__ void nbody_tile(const float4* __restrict__ body, float4* __restrict__ a, float eps2, int n) {
    __shared__ float4 tile[128];
    int i = blockIdx.x * 128 + threadIdx.x;
    float4 here = i < n ? body[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float ax = 0.0f, ay = 0.0f, az = 0.0f;
    for (int start = 0; start < n; start += 128) {
        int j = start + threadIdx.x;
        tile[threadIdx.x] = j < n ? body[j] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        __syncthreads();
#pragma unroll 8
        for (int s = 0; s < 128; ++s) {
            float4 other = tile[s];
            float dx = other.x - here.x, dy = other.y - here.y, dz = other.z - here.z;
            float inverse = rsqrtf(dx * dx + dy * dy + dz * dz + eps2);
            float factor = other.w * inverse * inverse * inverse;
            ax += factor * dx;
            ay += factor * dy;
            az += factor * dz;
        }
        __syncthreads();
    }
    if (i < n) a[i] = make_float4(ax, ay, az, 0.0f);
}

// One stage of Stockham's radix-2 transform: with half = n / 2 and l = 2^stage, for k < half, j = k mod l and m = k - j:
// y[2 m + j] = x[k] + w x[k + half], y[2 m + j + l] = x[k] - w x[k + half], w = exp(-i pi j / l). Grid y counts transforms.
extern "C" __global__ void fft_stage_naive(const float* x, float* y, int n, int l) {
    int k = blockIdx.x * blockDim.x + threadIdx.x, half = n / 2;
    if (k >= half) return;
    const float* from = x + blockIdx.y * 2 * n;
    float* to = y + blockIdx.y * 2 * n;
    int j = k % l, at = 2 * (k - j) + j;
    float s, c;
    sincospif(-(float)j / l, &s, &c);
    float re = from[2 * (k + half)] * c - from[2 * (k + half) + 1] * s, im = from[2 * (k + half)] * s + from[2 * (k + half) + 1] * c;
    to[2 * at] = from[2 * k] + re;
    to[2 * at + 1] = from[2 * k + 1] + im;
    to[2 * (at + l)] = from[2 * k] - re;
    to[2 * (at + l) + 1] = from[2 * k + 1] - im;
}

// The same with w[j] = exp(-i pi j / l) from a table, complex numbers as float2; l a power of two.
extern "C" __global__ void fft_stage_table(const float2* __restrict__ x, const float2* __restrict__ w, float2* __restrict__ y, int n, int l) {
    int k = blockIdx.x * blockDim.x + threadIdx.x, half = n / 2;
    if (k >= half) return;
    int j = k & (l - 1), at = 2 * (k - j) + j;
    size_t base = (size_t)blockIdx.y * n;
    float2 a = x[base + k], b = x[base + k + half], t = w[j];
    float re = b.x * t.x - b.y * t.y, im = b.x * t.y + b.y * t.x;
    y[base + at] = make_float2(a.x + re, a.y + im);
    y[base + at + l] = make_float2(a.x - re, a.y - im);
}

// Thomas' algorithm, one thread a system; element i of system s at [i * systems + s]; `work` is as large as x.
extern "C" __global__ void tridiagonal_naive(const float* lower, const float* diagonal, const float* upper, const float* right, float* x,
                                             float* work, int n, int systems) {
    int s = blockIdx.x * blockDim.x + threadIdx.x;
    if (s >= systems) return;
    float ratio = upper[s] / diagonal[s], value = right[s] / diagonal[s];
    work[s] = ratio;
    x[s] = value;
    for (int i = 1; i < n; ++i) {
        int at = i * systems + s;
        float pivot = diagonal[at] - lower[at] * ratio;
        ratio = upper[at] / pivot;
        value = (right[at] - lower[at] * value) / pivot;
        work[at] = ratio;
        x[at] = value;
    }
    for (int i = n - 2; i >= 0; --i) {
        int at = i * systems + s;
        value = x[at] - work[at] * value;
        x[at] = value;
    }
}

// Parallel cyclic reduction in shared memory: one block a system, n = blockDim.x <= 512 equations; element i of system s at [s * n + i].
extern "C" __global__ void tridiagonal_cyclic(const float* __restrict__ lower, const float* __restrict__ diagonal,
                                              const float* __restrict__ upper, const float* __restrict__ right, float* __restrict__ x,
                                              int n, int systems) {
    __shared__ float a[512], b[512], c[512], d[512];
    int i = threadIdx.x;
    size_t at = (size_t)blockIdx.x * n + i;
    a[i] = i > 0 ? lower[at] : 0.0f;
    b[i] = diagonal[at];
    c[i] = i < n - 1 ? upper[at] : 0.0f;
    d[i] = right[at];
    __syncthreads();
    for (int step = 1; step < n; step *= 2) {
        float na = 0.0f, nb = b[i], nc = 0.0f, nd = d[i];
        if (i >= step) {
            float factor = a[i] / b[i - step];
            na = -factor * a[i - step];
            nb -= factor * c[i - step];
            nd -= factor * d[i - step];
        }
        if (i + step < n) {
            float factor = c[i] / b[i + step];
            nc = -factor * c[i + step];
            nb -= factor * a[i + step];
            nd -= factor * d[i + step];
        }
        __syncthreads();
        a[i] = na;
        b[i] = nb;
        c[i] = nc;
        d[i] = nd;
        __syncthreads();
    }
    x[at] = d[i] / b[i];
}
