// Four small kernels for `gewu try operators`: element by element, element by element with a function, rows, and tiles.

// y = a x + y. One thread an element.
extern "C" __global__ void saxpy(const float* x, float* y, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}

// Gaussian error linear unit, in the form with tanh. A loop with the stride of the grid.
extern "C" __global__ void gelu(const float* x, float* y, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        float v = x[i];
        y[i] = 0.5f * v * (1.0f + tanhf(0.7978845608f * (v + 0.044715f * v * v * v)));
    }
}

__device__ __forceinline__ float warp_sum(float v) {
    for (int offset = 16; offset; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

__device__ __forceinline__ float warp_max(float v) {
    for (int offset = 16; offset; offset >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
    return v;
}

// Softmax of every row. One warp a row.
extern "C" __global__ void softmax(const float* x, float* y, int rows, int columns) {
    const float* in = x + (size_t)blockIdx.x * columns;
    float* out = y + (size_t)blockIdx.x * columns;
    float most = -INFINITY, total = 0.0f;
    for (int j = threadIdx.x; j < columns; j += 32) most = fmaxf(most, in[j]);
    most = warp_max(most);
    for (int j = threadIdx.x; j < columns; j += 32) total += expf(in[j] - most);
    total = warp_sum(total);
    for (int j = threadIdx.x; j < columns; j += 32) out[j] = expf(in[j] - most) / total;
}

// c = a b, row by row in memory. Tiles of 16 x 16 in shared memory.
extern "C" __global__ void matmul(const float* a, const float* b, float* c, int m, int n, int k) {
    __shared__ float tile_a[16][16], tile_b[16][16];
    int row = blockIdx.y * 16 + threadIdx.y, column = blockIdx.x * 16 + threadIdx.x;
    float sum = 0.0f;
    for (int start = 0; start < k; start += 16) {
        int at = start + threadIdx.x, bt = start + threadIdx.y;
        tile_a[threadIdx.y][threadIdx.x] = row < m && at < k ? a[row * k + at] : 0.0f;
        tile_b[threadIdx.y][threadIdx.x] = bt < k && column < n ? b[bt * n + column] : 0.0f;
        __syncthreads();
        for (int i = 0; i < 16; ++i) sum += tile_a[threadIdx.y][i] * tile_b[i][threadIdx.x];
        __syncthreads();
    }
    if (row < m && column < n) c[row * n + column] = sum;
}
