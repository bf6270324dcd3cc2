// Matrix instructions of a warp, for test_sass: tiles through ldmatrix, wmma in three precisions, an asynchronous copy.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

using namespace nvcuda;

template <typename T, typename S>
__device__ void product(const T* a, const T* b, S* c, int k) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> fa;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::row_major> fb;
    wmma::fragment<wmma::accumulator, 16, 16, 16, S> fc;
    wmma::fill_fragment(fc, (S)0);
    for (int i = 0; i < k; i += 16) {
        wmma::load_matrix_sync(fa, a + i, k);
        wmma::load_matrix_sync(fb, b + i * 16, 16);
        wmma::mma_sync(fc, fa, fb, fc);
    }
    wmma::store_matrix_sync(c, fc, 16, wmma::mem_row_major);
}

extern "C" {
__global__ void half_product(const half* a, const half* b, float* c, int k) { product(a, b, c, k); }

__global__ void bfloat_product(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int k) { product(a, b, c, k); }

__global__ void tiles(const half* a, const half* b, float* c) {
    __shared__ __align__(16) half sa[16][16], sb[16][16];
    unsigned to = __cvta_generic_to_shared(&sa[threadIdx.x / 2][threadIdx.x % 2 * 8]);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(a + threadIdx.x * 8));
    asm volatile("cp.async.commit_group;");
    for (int i = threadIdx.x; i < 256; i += 32) sb[i / 16][i % 16] = b[i];
    asm volatile("cp.async.wait_group 0;");
    __syncthreads();
    unsigned x[4], y[4];
    unsigned pa = __cvta_generic_to_shared(&sa[threadIdx.x % 16][threadIdx.x / 16 * 8]);
    unsigned pb = __cvta_generic_to_shared(&sb[threadIdx.x % 16][threadIdx.x / 16 * 8]);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(pa));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(y[0]), "=r"(y[1]), "=r"(y[2]), "=r"(y[3])
                 : "r"(pb));
    for (int n = 0; n < 2; n++) {
        float d[4] = {0, 0, 0, 0};
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[2 * n]), "r"(y[2 * n + 1]));
        float* row = c + threadIdx.x / 4 * 16 + n * 8 + threadIdx.x % 4 * 2;
        row[0] = d[0];
        row[1] = d[1];
        row[128] = d[2];
        row[129] = d[3];
    }
}
}
