// Source of small_sm80.cubin and small_sm90.cubin: nvcc -cubin -arch=sm_80 -o small_sm80.cubin small.cu
extern "C" {
__constant__ float weights[4] = {1, 2, 3, 4};

__global__ void weigh(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] * weights[i & 3];
}

__global__ void row_sum(const float* x, float* y, int n) {
    __shared__ float part[32];
    float s = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) s += x[(size_t)blockIdx.x * n + i];
    for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
    if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = s;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int k = 1; k < blockDim.x / 32; k++) s += part[k];
        y[blockIdx.x] = s / n;
    }
}
}
