/* Trilinear interpolation, and what is made by it.
 *
 *     places (3, count)   x  |---- POINTS ----|---- POINTS ----|--|
 *                         y  |----------------|----------------|--|     a block at a time: first which eight voxels
 *                         z  |----------------|----------------|--|     and how much of each, then every channel
 *
 *     at[k], weight[k]    k = 4 (above along z) + 2 (along y) + (along x)
 *
 *         2-----3
 *        /|    /|     the corner 0 is the voxel below the place along all axes
 *       0-----1 |
 *       | 6---|-7
 *       4-----5
 *
 * Kernels whose places are a grid seen through a matrix make them row by row, POINTS at once, and hold none. */

/* The eight voxels around each of n places, index coordinates, and their weights. Outside, the border goes on, or
 * with `zeros` there is 0 from one voxel on; NaN counts as below. */
INLINE void corners(const float *const place[3], int64_t n, const int64_t size[3], int zeros, int32_t (*at)[POINTS],
                    float (*weight)[POINTS]) {
    const int64_t stride[3] = {1, size[0], size[0] * size[1]};
    for (int axis = 0; axis < 3; axis++) {
        const float *p = place[axis];
        const float end = (float)(size[axis] - 1), least = zeros ? -1 : 0, most = zeros ? end + 1 : end;
        const int32_t step = (int32_t)stride[axis];
        int32_t low_at[POINTS], high_at[POINTS];
        float low_weight[POINTS], high_weight[POINTS];
        for (int64_t i = 0; i < n; i++) {
            float v = p[i] > least ? p[i] : least;
            v = v < most ? v : most;
            const float f = floorf(v), t = v - f;
            low_weight[i] = f < 0 || f > end ? 0 : 1 - t;
            high_weight[i] = f + 1 > end ? 0 : t;
            const float low = f < 0 ? 0 : f > end ? end : f, high = f + 1 > end ? end : f + 1;
            low_at[i] = (int32_t)low * step;
            high_at[i] = (int32_t)high * step;
        }
        for (int k = 0; k < 8; k++) {
            const int32_t *a = k >> axis & 1 ? high_at : low_at;
            const float *w = k >> axis & 1 ? high_weight : low_weight;
            if (axis == 0)
                for (int64_t i = 0; i < n; i++) at[k][i] = a[i], weight[k][i] = w[i];
            else
                for (int64_t i = 0; i < n; i++) at[k][i] += a[i], weight[k][i] *= w[i];
        }
    }
}

INLINE void interpolate(const float *volume, int64_t n, int32_t (*at)[POINTS], float (*weight)[POINTS], float *out) {
    for (int64_t i = 0; i < n; i++) {
        float sum = 0;
        for (int k = 0; k < 8; k++) sum += weight[k][i] * volume[at[k][i]];
        out[i] = sum;
    }
}

/* corners() of the places (3, count) from `start` on, POINTS of them or what is left; returns how many. */
INLINE int64_t block_corners(const float *where, int64_t count, int64_t start, const int64_t size[3], int zeros,
                             int32_t (*at)[POINTS], float (*weight)[POINTS]) {
    const int64_t n = count - start < POINTS ? count - start : POINTS;
    const float *const place[3] = {where + start, where + count + start, where + 2 * count + start};
    corners(place, n, size, zeros, at, weight);
    return n;
}

/* Blocks [first, last) of POINTS places (3, count), index coordinates (x, y, z): sampled (channels, count) of volume
 * (channels, z, y, x), which has less than 2^31 voxels. */
KERNEL(sample)(int64_t first, int64_t last, const float *volume, int64_t channels, int64_t z, int64_t y, int64_t x,
               const float *places, int64_t count, int64_t zeros, float *sampled) {
    int32_t at[8][POINTS];
    float share[8][POINTS];
    const int64_t size[3] = {x, y, z};
    for (int64_t b = first; b < last; b++) {
        const int64_t start = b * POINTS;
        const int64_t n = block_corners(places, count, start, size, (int)zeros, at, share);
        for (int64_t c = 0; c < channels; c++)
            interpolate(volume + c * z * y * x, n, at, share, sampled + c * count + start);
    }
    return 0;
}

/* The same of a map whose cells count by their weight (z, y, x), 0 beyond it; sampled_weight (count): the weight
 * there. */
KERNEL(sample_known)(int64_t first, int64_t last, const float *volume, const float *weight, int64_t channels,
                     int64_t z, int64_t y, int64_t x, const float *places, int64_t count, double least_weight,
                     float *sampled, float *sampled_weight) {
    int32_t at[8][POINTS];
    float share[8][POINTS];
    const int64_t size[3] = {x, y, z};
    for (int64_t b = first; b < last; b++) {
        const int64_t start = b * POINTS;
        const int64_t n = block_corners(places, count, start, size, 1, at, share);
        const float least = (float)least_weight;
        float *sum = sampled_weight + start;
        for (int64_t i = 0; i < n; i++) sum[i] = 0;
        for (int k = 0; k < 8; k++)
            for (int64_t i = 0; i < n; i++) sum[i] += share[k][i] *= weight[at[k][i]];
        for (int k = 0; k < 8; k++)
            for (int64_t i = 0; i < n; i++) share[k][i] /= sum[i] > least ? sum[i] : least;
        for (int64_t c = 0; c < channels; c++)
            interpolate(volume + c * z * y * x, n, at, share, sampled + c * count + start);
    }
    return 0;
}

/* Planes [first, last) of halved = (u - v(cell + u)) / 2, with u and v displacements (z, y, x, 4) in cells, of which the
 * fourth component is none; the border goes on outside. */
KERNEL(halfway)(int64_t first, int64_t last, const float *u, const float *v, int64_t z, int64_t y, int64_t x,
                float *halved) {
    const int64_t size[3] = {x, y, z}, stride[3] = {4, 4 * x, 4 * x * y};
    for (int64_t k = first; k < last; k++)
        for (int64_t j = 0; j < y; j++)
            for (int64_t i = 0; i < x; i++) {
                const int64_t cell[3] = {i, j, k}, here = 4 * ((k * y + j) * x + i);
                const float *low = v;
                int64_t step[3];
                float t[3];
                for (int axis = 0; axis < 3; axis++) {
                    const float end = (float)(size[axis] - 1), to = (float)cell[axis] + u[here + axis];
                    const float inner = to > 0 ? to < end ? to : end : 0;
                    const int32_t at = (int32_t)inner;
                    t[axis] = inner - (float)at;
                    low += at * stride[axis];
                    step[axis] = at + 1 < size[axis] ? stride[axis] : 0;
                }
                vec4 edge[4];
                for (int e = 0; e < 4; e++) {
                    const float *from = low + (e & 1) * step[1] + (e >> 1) * step[2];
                    const vec4 one = *(const loose_vec4 *)from, other = *(const loose_vec4 *)(from + step[0]);
                    edge[e] = one + t[0] * (other - one);
                }
                const vec4 near = edge[0] + t[1] * (edge[1] - edge[0]), far = edge[2] + t[1] * (edge[3] - edge[2]);
                const vec4 found = near + t[2] * (far - near), own = *(const loose_vec4 *)(u + here);
                *(loose_vec4 *)(halved + here) = 0.5f * (own - found);
            }
    return 0;
}

/* matrix (x, y, z, 1) for n voxels of a row, the first at (x, y, z); matrix (3, 4). */
INLINE void mapped(const double *matrix, int64_t x, int64_t y, int64_t z, int64_t n, float (*out)[POINTS]) {
    for (int axis = 0; axis < 3; axis++) {
        const double *row = matrix + 4 * axis;
        const double start = row[0] * x + row[1] * y + row[2] * z + row[3], step = row[0];
        for (int32_t i = 0; i < (int32_t)n; i++) out[axis][i] = (float)(start + step * i);
    }
}

/* Planes [first, last) of an image (z, y, x) seen from another grid: resampled (any, to_y, to_x) and inside, 1 where a
 * place is no further than half a voxel beyond the outer centres, else 0. matrix (3, 4): index to index. */
KERNEL(resample)(int64_t first, int64_t last, const float *image, int64_t z, int64_t y, int64_t x,
                 const double *matrix, int64_t to_y, int64_t to_x, float *resampled, float *inside) {
    int32_t at[8][POINTS];
    float weight[8][POINTS], place[3][POINTS];
    const float *const places[3] = {place[0], place[1], place[2]};
    const int64_t size[3] = {x, y, z};
    for (int64_t k = first; k < last; k++)
        for (int64_t j = 0; j < to_y; j++)
            for (int64_t start = 0; start < to_x; start += POINTS) {
                const int64_t n = to_x - start < POINTS ? to_x - start : POINTS, to = (k * to_y + j) * to_x + start;
                mapped(matrix, start, j, k, n, place);
                corners(places, n, size, 0, at, weight);
                interpolate(image, n, at, weight, resampled + to);
                for (int64_t i = 0; i < n; i++) {
                    int in = 1;
                    for (int axis = 0; axis < 3; axis++)
                        in &= (place[axis][i] >= -0.5f) & (place[axis][i] <= (float)size[axis] - 0.5f);
                    inside[to + i] = (float)in;
                }
            }
    return 0;
}

/* Planes [first, last) of field (any, y, x, 3) = whole i + part u(cells i) for the voxels i of a grid, with u the
 * displacement (3, cells_z, cells_y, cells_x) at an index of its cells. whole, cells (3, 4); part (3, 3). */
KERNEL(displacement_field)(int64_t first, int64_t last, const float *displacement, int64_t cells_z,
                           int64_t cells_y, int64_t cells_x, const double *cells, const double *part, const double *whole, int64_t y,
                           int64_t x, float *field) {
    int32_t at[8][POINTS];
    float weight[8][POINTS], place[3][POINTS], u[3][POINTS];
    const float *const places[3] = {place[0], place[1], place[2]};
    const int64_t size[3] = {cells_x, cells_y, cells_z};
    const int64_t component = cells_z * cells_y * cells_x;
    for (int64_t k = first; k < last; k++)
        for (int64_t j = 0; j < y; j++)
            for (int64_t start = 0; start < x; start += POINTS) {
                const int64_t n = x - start < POINTS ? x - start : POINTS;
                mapped(cells, start, j, k, n, place);
                corners(places, n, size, 0, at, weight);
                for (int c = 0; c < 3; c++) interpolate(displacement + c * component, n, at, weight, u[c]);
                float *to = field + ((k * y + j) * x + start) * 3;
                for (int c = 0; c < 3; c++) {
                    const double *w = whole + 4 * c, *p = part + 3 * c;
                    const double row = w[0] * start + w[1] * j + w[2] * k + w[3], step = w[0];
                    for (int32_t i = 0; i < (int32_t)n; i++)
                        to[3 * i + c] = (float)(row + step * i + (p[0] * u[0][i] + p[1] * u[1][i] + p[2] * u[2][i]));
                }
            }
    return 0;
}
