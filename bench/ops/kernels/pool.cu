// Largest or mean of each window of size x size, windows `stride` apart, x[planes][height][width]; grid z counts planes.
#include <math.h>

extern "C" __global__ void maxpool_naive(const float* x, float* y, int height, int width, int size, int stride) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    int rows = (height - size) / stride + 1, columns = (width - size) / stride + 1;
    if (row >= rows || column >= columns) return;
    float most = -INFINITY;
    for (int i = 0; i < size; ++i)
        for (int j = 0; j < size; ++j)
            most = fmaxf(most, x[(blockIdx.z * height + row * stride + i) * width + column * stride + j]);
    y[(blockIdx.z * rows + row) * columns + column] = most;
}

// Windows of 2 x 2 side by side, width a multiple of 4: a float4 of each of two rows makes two results.
extern "C" __global__ void maxpool_float4(const float4* __restrict__ x, float2* __restrict__ y, int height, int width, int size,
                                          int stride) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= height / 2 || column >= width / 4) return;
    float4 a = x[((size_t)blockIdx.z * height + 2 * row) * (width / 4) + column];
    float4 b = x[((size_t)blockIdx.z * height + 2 * row + 1) * (width / 4) + column];
    y[((size_t)blockIdx.z * (height / 2) + row) * (width / 4) + column] =
        make_float2(fmaxf(fmaxf(a.x, a.y), fmaxf(b.x, b.y)), fmaxf(fmaxf(a.z, a.w), fmaxf(b.z, b.w)));
}

extern "C" __global__ void avgpool_naive(const float* x, float* y, int height, int width, int size, int stride) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    int rows = (height - size) / stride + 1, columns = (width - size) / stride + 1;
    if (row >= rows || column >= columns) return;
    float total = 0.0f;
    for (int i = 0; i < size; ++i)
        for (int j = 0; j < size; ++j) total += x[(blockIdx.z * height + row * stride + i) * width + column * stride + j];
    y[(blockIdx.z * rows + row) * columns + column] = total / (size * size);
}

extern "C" __global__ void avgpool_float4(const float4* __restrict__ x, float2* __restrict__ y, int height, int width, int size,
                                          int stride) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= height / 2 || column >= width / 4) return;
    float4 a = x[((size_t)blockIdx.z * height + 2 * row) * (width / 4) + column];
    float4 b = x[((size_t)blockIdx.z * height + 2 * row + 1) * (width / 4) + column];
    y[((size_t)blockIdx.z * (height / 2) + row) * (width / 4) + column] =
        make_float2(0.25f * ((a.x + a.y) + (b.x + b.y)), 0.25f * ((a.z + a.w) + (b.z + b.w)));
}
