// Operators that only move elements, and bilinear resizing.

extern "C" __global__ void transpose_naive(const float* x, float* y, int rows, int columns) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row < rows && column < columns) y[column * rows + row] = x[row * columns + column];
}

// Tiles of 32 x 32 through shared memory, block 32 x 8.
extern "C" __global__ void transpose_shared(const float* __restrict__ x, float* __restrict__ y, int rows, int columns) {
    __shared__ float tile[32][33];
    int column = blockIdx.x * 32 + threadIdx.x, row = blockIdx.y * 32 + threadIdx.y;
    for (int j = 0; j < 32; j += 8)
        if (row + j < rows && column < columns) tile[threadIdx.y + j][threadIdx.x] = x[(size_t)(row + j) * columns + column];
    __syncthreads();
    column = blockIdx.y * 32 + threadIdx.x;
    row = blockIdx.x * 32 + threadIdx.y;
    for (int j = 0; j < 32; j += 8)
        if (row + j < columns && column < rows) y[(size_t)(row + j) * rows + column] = tile[threadIdx.x][threadIdx.y + j];
}

// y[row] = a[row][na] followed by b[row][nb]
extern "C" __global__ void concat_naive(const float* a, const float* b, float* y, int rows, int na, int nb) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, n = na + nb;
    if (i >= rows * n) return;
    int row = i / n, column = i % n;
    if (column < na)
        y[i] = a[row * na + column];
    else
        y[i] = b[row * nb + column - na];
}

// One block a row.
extern "C" __global__ void concat_row(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ y, int rows, int na,
                                      int nb) {
    float* to = y + (size_t)blockIdx.x * (na + nb);
    for (int i = threadIdx.x; i < na; i += blockDim.x) to[i] = a[(size_t)blockIdx.x * na + i];
    for (int i = threadIdx.x; i < nb; i += blockDim.x) to[na + i] = b[(size_t)blockIdx.x * nb + i];
}

// x[planes][height][width] with a rim of `rim` elements of `value` on all four sides of a plane.
extern "C" __global__ void pad_naive(const float* x, float* y, float value, int height, int width, int rim) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    int rows = height + 2 * rim, columns = width + 2 * rim, r = row - rim, c = column - rim;
    if (row >= rows || column >= columns) return;
    bool inside = r >= 0 && r < height && c >= 0 && c < width;
    y[(blockIdx.z * rows + row) * columns + column] = inside ? x[(blockIdx.z * height + r) * width + c] : value;
}

// One block a row (grid y) of a plane (grid z).
extern "C" __global__ void pad_row(const float* __restrict__ x, float* __restrict__ y, float value, int height, int width, int rim) {
    int columns = width + 2 * rim, r = (int)blockIdx.y - rim;
    float* to = y + ((size_t)blockIdx.z * gridDim.y + blockIdx.y) * columns;
    const float* from = x + ((size_t)blockIdx.z * height + r) * width;
    for (int i = threadIdx.x; i < columns; i += blockDim.x)
        to[i] = r >= 0 && r < height && i >= rim && i < width + rim ? from[i - rim] : value;
}

// y[c][i][j][row][column] = x[c][row + i - padding][column + j - padding], zero outside; one thread an element of y.
extern "C" __global__ void im2col_naive(const float* x, float* y, int channels, int height, int width, int taps, int padding) {
    int rows = height + 2 * padding - taps + 1, columns = width + 2 * padding - taps + 1;
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= channels * taps * taps * rows * columns) return;
    int column = index % columns, row = index / columns % rows;
    int j = index / (columns * rows) % taps, i = index / (columns * rows * taps) % taps, c = index / (columns * rows * taps * taps);
    int r = row + i - padding, q = column + j - padding;
    y[index] = r >= 0 && r < height && q >= 0 && q < width ? x[(c * height + r) * width + q] : 0.0f;
}

// One thread a place (grid x along columns, y along rows, z along channels), which writes all taps.
extern "C" __global__ void im2col_place(const float* __restrict__ x, float* __restrict__ y, int channels, int height, int width, int taps,
                                        int padding) {
    int rows = height + 2 * padding - taps + 1, columns = width + 2 * padding - taps + 1;
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y, c = blockIdx.z;
    if (column >= columns) return;
    for (int i = 0; i < taps; ++i)
        for (int j = 0; j < taps; ++j) {
            int r = row + i - padding, q = column + j - padding;
            bool inside = r >= 0 && r < height && q >= 0 && q < width;
            y[((((size_t)c * taps + i) * taps + j) * rows + row) * columns + column] =
                inside ? x[((size_t)c * height + r) * width + q] : 0.0f;
        }
}

__device__ __forceinline__ float mixed(float a, float b, float part) { return a + (b - a) * part; }

// Bilinear, pixel centres at halves, edges repeated; grid z counts planes.
extern "C" __global__ void resize_naive(const float* x, float* y, int height, int width, int rows, int columns) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= rows || column >= columns) return;
    float v = fmaxf((row + 0.5f) * height / rows - 0.5f, 0.0f), u = fmaxf((column + 0.5f) * width / columns - 0.5f, 0.0f);
    int r = (int)v, c = (int)u, down = r + 1 < height ? r + 1 : r, right = c + 1 < width ? c + 1 : c;
    const float* plane = x + blockIdx.z * height * width;
    float upper = mixed(plane[r * width + c], plane[r * width + right], u - c);
    float lower = mixed(plane[down * width + c], plane[down * width + right], u - c);
    y[(blockIdx.z * rows + row) * columns + column] = mixed(upper, lower, v - r);
}

// Twice as wide and high: each pixel's thread writes its 2 x 2 block of results, all weights being 1/4 and 3/4.
extern "C" __global__ void resize_double(const float* __restrict__ x, float* __restrict__ y, int height, int width, int rows, int columns) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= height || column >= width) return;
    const float* plane = x + (size_t)blockIdx.z * height * width;
    float near[3][3];
#pragma unroll
    for (int i = 0; i < 3; ++i)
#pragma unroll
        for (int j = 0; j < 3; ++j) {
            int r = min(max(row + i - 1, 0), height - 1), c = min(max(column + j - 1, 0), width - 1);
            near[i][j] = plane[r * width + c];
        }
    float2* to = reinterpret_cast<float2*>(y + ((size_t)blockIdx.z * rows + 2 * row) * columns) + column;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        float side[3];
#pragma unroll
        for (int j = 0; j < 3; ++j) side[j] = i == 0 ? mixed(near[0][j], near[1][j], 0.75f) : mixed(near[1][j], near[2][j], 0.25f);
        to[i * (columns / 2)] = make_float2(mixed(side[0], side[1], 0.75f), mixed(side[1], side[2], 0.25f));
    }
}
