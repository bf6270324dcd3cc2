// What compilers make PTX of that the benchmark kernels do not have: calls, structures, local memory, atomics, conversions.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

#include <cstdio>

struct Record {
  float a;
  int n;
  double d;
  float4 v;
  short s[3];
};

__constant__ float table[5] = {1.f, -2.f, 3.5f, 4.f, 5.f};
__device__ const int lookup[4] = {7, -8, 9, 10};
__constant__ float set_by_host[4];
__device__ int counter = 3;

__device__ __noinline__ float2 helper(float x, Record p, int i) {
  float2 r;
  r.x = x * p.a + p.v.y;
  r.y = i & 1 ? p.s[1] : (float)p.d;
  return r;
}

__device__ __noinline__ float early(float x, int i) {
  if (i > 10) return x + 1;
  if (i > 5) return x * 2;
  return helper(x, Record{1.f, 2, 3.0, {1, 2, 3, 4}, {1, 2, 3}}, i).x;
}

extern "C" {
__global__ void calls(Record p, const float* x, float* y) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < p.n) {
    float2 r = helper(x[i], p, i);
    y[i] = r.x + r.y + early(x[i], i);
  }
}

__global__ void parameter_by_index(Record p, const int* k, float* y) {
  int i = threadIdx.x;
  y[i] = p.s[k[i]] + (&p.v.x)[k[i]];
}

__global__ void tables(const int* k, float* y) { y[threadIdx.x] = table[k[threadIdx.x]] + lookup[k[threadIdx.x] & 3]; }

__global__ void host_table(float* y) { y[threadIdx.x] = set_by_host[threadIdx.x]; }

__global__ void writes_global(int* y) { y[threadIdx.x] = atomicAdd(&counter, 1); }

__global__ void prints(int* x) {
  if (x[0]) printf("%d", x[0]);
}

__global__ void local_array(const float* x, float* y, int n) {
  float a[16], s = 0;
  for (int i = 0; i < 16; i++) a[(i * 7) & 15] = x[i + threadIdx.x];
  for (int i = 0; i < n; i++) s = s * 0.5f + a[(i * 5) & 15];
  y[threadIdx.x] = s;
}

__global__ void halves(const __half2* x, const __nv_bfloat162* b, __half2* y, __nv_bfloat162* z, float* f) {
  int i = threadIdx.x;
  y[i] = __hadd2(__hfma2(x[i], x[i], __hmul2(x[i], __float2half2_rn(0.5f))), __hneg2(x[i]));
  z[i] = __hadd2(b[i], b[i]);
  f[i] = __low2float(x[i]) + __high2float(b[i]);
}

__global__ void conversions(const float* x, const double* d, const int* s, int* y, float* f, double* g) {
  int i = threadIdx.x;
  float v = x[i];
  y[i] = __float2int_rn(v);
  y[64 + i] = __float2int_rz(v);
  y[128 + i] = __float2int_ru(v);
  y[192 + i] = __float2int_rd(v);
  y[256 + i] = (int)__float2uint_rn(v);
  y[320 + i] = (signed char)v;
  y[384 + i] = (unsigned char)s[i];
  y[448 + i] = (short)s[i];
  y[512 + i] = __double2int_rn(d[i]);
  f[i] = floorf(v);
  f[64 + i] = rintf(v);
  f[128 + i] = (float)d[i];
  f[192 + i] = (float)(unsigned)s[i];
  f[256 + i] = __saturatef(v);
  f[320 + i] = copysignf(2.f, v);
  g[i] = v;
  g[64 + i] = sqrt(fabs(d[i]));
  g[128 + i] = d[i] / 3.0;
  g[192 + i] = (double)(long long)s[i];
}

__global__ void warps(const int* x, int* y) {
  int i = threadIdx.x, v = x[i];
  y[i] = __shfl_up_sync(~0u, v, 3);
  y[64 + i] = __shfl_down_sync(~0u, v, 5, 16);
  y[128 + i] = __shfl_sync(~0u, v, v & 31);
  y[192 + i] = __shfl_xor_sync(~0u, v, 9);
  y[256 + i] = __ballot_sync(~0u, v & 1);
  y[320 + i] = __any_sync(~0u, v > 900) * 2 + __all_sync(~0u, v >= 0);
  y[384 + i] = __match_any_sync(~0u, v & 3);
  y[448 + i] = __reduce_add_sync(~0u, v);
  y[512 + i] = __reduce_max_sync(~0u, (unsigned)v);
}

__global__ void atomics(const int* x, int* a, unsigned* u, float* f, unsigned long long* l) {
  __shared__ int s;
  int v = x[threadIdx.x];
  atomicAdd(a, v);
  atomicMin(a + 1, v);
  atomicMax(a + 2, v);
  atomicAnd(a + 3, v);
  atomicOr(a + 4, v);
  atomicXor(a + 5, v);
  atomicInc(u, 20);
  atomicAdd(f, 0.5f);
  atomicAdd(l, (unsigned long long)v << 20);
  atomicCAS(a + 6, 0, 5);
  atomicExch(a + 7, 3);
  if (threadIdx.x == 0) s = 0;
  __syncthreads();
  atomicAdd(&s, v);
  __syncthreads();
  if (threadIdx.x == 0) a[8] = s;
  a[16 + threadIdx.x] = __syncthreads_count(v & 1);
  a[80 + threadIdx.x] = __syncthreads_and(v >= 0) + 2 * __syncthreads_or(v > 5000) + 4 * __syncthreads_or(v >= 0);
}

__global__ void generic_addresses(const float* x, float* y) {
  __shared__ float s[64];
  extern __shared__ __align__(16) unsigned char dynamic[];
  float* q = (float*)(dynamic + 256);
  int i = threadIdx.x;
  s[i] = x[i];
  q[i] = 2 * x[i];
  __syncthreads();
  float* p = i & 1 ? s : q;
  y[i] = p[63 - i];
  if (__isShared(p)) y[i] += 1000;
}

__global__ void fragments(const __half* a, const __half* b, const float* c, float* d) {
  using namespace nvcuda::wmma;
  fragment<matrix_a, 16, 16, 16, __half, col_major> fa;
  fragment<matrix_b, 16, 16, 16, __half, col_major> fb;
  fragment<accumulator, 16, 16, 16, float> fc;
  load_matrix_sync(fa, a, 16);
  load_matrix_sync(fb, b, 24);
  load_matrix_sync(fc, c, 16, mem_row_major);
  for (int i = 0; i < fc.num_elements; i++) fc.x[i] *= 2;
  mma_sync(fc, fa, fb, fc);
  store_matrix_sync(d, fc, 16, mem_col_major);
}
}
