// Convolutions in the sense of neural networks (no flip), x[batch][channels in][height][width], w[channels out][channels in][taps],
// zeros around the picture.

// y[b][o][p] = bias[o] + sum over c, t of x[b][c][p + t - padding] w[o][c][t]; outputs: width + 2 padding - taps + 1.
extern "C" __global__ void conv1d_naive(const float* x, const float* w, const float* bias, float* y, int channels, int width, int outputs,
                                        int taps, int padding) {
    int p = blockIdx.x * blockDim.x + threadIdx.x, o = blockIdx.y, b = blockIdx.z, places = width + 2 * padding - taps + 1;
    if (p >= places) return;
    float total = bias[o];
    for (int c = 0; c < channels; ++c)
        for (int t = 0; t < taps; ++t) {
            int q = p + t - padding;
            if (q >= 0 && q < width) total += x[(b * channels + c) * width + q] * w[(o * channels + c) * taps + t];
        }
    y[(b * outputs + o) * places + p] = total;
}

// 128 places a block; a stretch of each channel in shared memory, at most 17 taps.
extern "C" __global__ void conv1d_shared(const float* __restrict__ x, const float* __restrict__ w, const float* __restrict__ bias,
                                         float* __restrict__ y, int channels, int width, int outputs, int taps, int padding) {
    __shared__ float stretch[144], weight[17];
    int first = blockIdx.x * 128, o = blockIdx.y, b = blockIdx.z, places = width + 2 * padding - taps + 1, t = threadIdx.x;
    float total = 0.0f;
    for (int c = 0; c < channels; ++c) {
        for (int i = t; i < 128 + taps - 1; i += 128) {
            int q = first + i - padding;
            stretch[i] = q >= 0 && q < width ? x[((size_t)b * channels + c) * width + q] : 0.0f;
        }
        if (t < taps) weight[t] = w[(o * channels + c) * taps + t];
        __syncthreads();
        for (int i = 0; i < taps; ++i) total += stretch[t + i] * weight[i];
        __syncthreads();
    }
    if (first + t < places) y[((size_t)b * outputs + o) * places + first + t] = total + bias[o];
}

// Square kernels of `taps`, stride 1; grid z counts batch times channels out.
extern "C" __global__ void conv2d_naive(const float* x, const float* w, const float* bias, float* y, int channels, int height, int width,
                                        int outputs, int taps, int padding) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    int o = blockIdx.z % outputs, b = blockIdx.z / outputs;
    int rows = height + 2 * padding - taps + 1, columns = width + 2 * padding - taps + 1;
    if (row >= rows || column >= columns) return;
    float total = bias[o];
    for (int c = 0; c < channels; ++c)
        for (int i = 0; i < taps; ++i)
            for (int j = 0; j < taps; ++j) {
                int r = row + i - padding, q = column + j - padding;
                if (r >= 0 && r < height && q >= 0 && q < width)
                    total += x[((b * channels + c) * height + r) * width + q] * w[((o * channels + c) * taps + i) * taps + j];
            }
    y[((b * outputs + o) * rows + row) * columns + column] = total;
}

// Kernels of 3 x 3, block 16 x 16: a tile of the picture with its rim in shared memory, the taps unrolled.
extern "C" __global__ void conv2d_shared(const float* __restrict__ x, const float* __restrict__ w, const float* __restrict__ bias,
                                         float* __restrict__ y, int channels, int height, int width, int outputs, int taps, int padding) {
    __shared__ float tile[18][18], weight[9];
    int o = blockIdx.z % outputs, b = blockIdx.z / outputs, t = threadIdx.y * 16 + threadIdx.x;
    int rows = height + 2 * padding - 2, columns = width + 2 * padding - 2;
    int row = blockIdx.y * 16 + threadIdx.y, column = blockIdx.x * 16 + threadIdx.x;
    float total = 0.0f;
    for (int c = 0; c < channels; ++c) {
        for (int i = t; i < 324; i += 256) {
            int r = blockIdx.y * 16 + i / 18 - padding, q = blockIdx.x * 16 + i % 18 - padding;
            bool inside = r >= 0 && r < height && q >= 0 && q < width;
            tile[i / 18][i % 18] = inside ? x[(((size_t)b * channels + c) * height + r) * width + q] : 0.0f;
        }
        if (t < 9) weight[t] = w[(o * channels + c) * 9 + t];
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 3; ++i)
#pragma unroll
            for (int j = 0; j < 3; ++j) total += tile[threadIdx.y + i][threadIdx.x + j] * weight[3 * i + j];
        __syncthreads();
    }
    if (row < rows && column < columns) y[(((size_t)b * outputs + o) * rows + row) * columns + column] = total + bias[o];
}

// Each channel with its own kernel w[channel][taps][taps]; grid z counts batch times channels.
extern "C" __global__ void depthwise_naive(const float* x, const float* w, float* y, int channels, int height, int width, int taps,
                                           int padding) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y, c = blockIdx.z % channels;
    int rows = height + 2 * padding - taps + 1, columns = width + 2 * padding - taps + 1;
    if (row >= rows || column >= columns) return;
    float total = 0.0f;
    for (int i = 0; i < taps; ++i)
        for (int j = 0; j < taps; ++j) {
            int r = row + i - padding, q = column + j - padding;
            if (r >= 0 && r < height && q >= 0 && q < width)
                total += x[(blockIdx.z * height + r) * width + q] * w[(c * taps + i) * taps + j];
        }
    y[(blockIdx.z * rows + row) * columns + column] = total;
}

// Kernels of 3 x 3, block 16 x 16.
extern "C" __global__ void depthwise_shared(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y, int channels,
                                            int height, int width, int taps, int padding) {
    __shared__ float tile[18][18];
    int c = blockIdx.z % channels, t = threadIdx.y * 16 + threadIdx.x;
    int rows = height + 2 * padding - 2, columns = width + 2 * padding - 2;
    int row = blockIdx.y * 16 + threadIdx.y, column = blockIdx.x * 16 + threadIdx.x;
    for (int i = t; i < 324; i += 256) {
        int r = blockIdx.y * 16 + i / 18 - padding, q = blockIdx.x * 16 + i % 18 - padding;
        bool inside = r >= 0 && r < height && q >= 0 && q < width;
        tile[i / 18][i % 18] = inside ? x[((size_t)blockIdx.z * height + r) * width + q] : 0.0f;
    }
    __syncthreads();
    if (row >= rows || column >= columns) return;
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < 3; ++i)
#pragma unroll
        for (int j = 0; j < 3; ++j) total += tile[threadIdx.y + i][threadIdx.x + j] * w[c * 9 + 3 * i + j];
    y[((size_t)blockIdx.z * rows + row) * columns + column] = total;
}

// The transpose of a convolution of stride `stride`: w[channels in][channels out][taps][taps], outputs (height - 1) stride - 2 padding + taps.
extern "C" __global__ void transposed_conv_naive(const float* x, const float* w, float* y, int channels, int height, int width,
                                                 int outputs, int taps, int stride, int padding) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    int o = blockIdx.z % outputs, b = blockIdx.z / outputs;
    int rows = (height - 1) * stride - 2 * padding + taps, columns = (width - 1) * stride - 2 * padding + taps;
    if (row >= rows || column >= columns) return;
    float total = 0.0f;
    for (int c = 0; c < channels; ++c)
        for (int i = 0; i < taps; ++i)
            for (int j = 0; j < taps; ++j) {
                int r = row + padding - i, q = column + padding - j;
                if (r >= 0 && q >= 0 && r % stride == 0 && q % stride == 0 && r / stride < height && q / stride < width)
                    total += x[((b * channels + c) * height + r / stride) * width + q / stride] *
                             w[((c * outputs + o) * taps + i) * taps + j];
            }
    y[((b * outputs + o) * rows + row) * columns + column] = total;
}

// Only the taps that meet a pixel are visited: 4 x 4 taps, stride 2, padding 1 (each result meets 2 x 2), results twice as wide and high.
extern "C" __global__ void transposed_conv_phase(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y,
                                                 int channels, int height, int width, int outputs, int taps, int stride, int padding) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    int o = blockIdx.z % outputs, b = blockIdx.z / outputs;
    if (row >= 2 * height || column >= 2 * width) return;
    int first_i = (row + 1) & 1, first_j = (column + 1) & 1;
    float total = 0.0f;
    for (int c = 0; c < channels; ++c)
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                int r = (row + 1 - first_i) / 2 - i, q = (column + 1 - first_j) / 2 - j;
                float v = r >= 0 && r < height && q >= 0 && q < width ? x[(((size_t)b * channels + c) * height + r) * width + q] : 0.0f;
                total += v * w[((c * outputs + o) * 4 + first_i + 2 * i) * 4 + first_j + 2 * j];
            }
    y[(((size_t)b * outputs + o) * 2 * height + row) * 2 * width + column] = total;
}
