/* The self-similarity descriptor MIND-SSC in three passes; see regkit.features.maps.mind_ssc.
 *
 *        a             12 pairs (a, b) of the six face neighbours of a voxel, at a distance of `dilation`, differ
 *       /|             by 6 steps alone. So there are 6 volumes of means over 3^3 voxels of (I(p + step) - I(p))^2,
 *      b-p-.           `dilation` voxels wider than the image on every side, and each pair sees one of them from
 *        |             another voxel on: a view.
 *        .
 *
 *     padded image  -->  means, 6 volumes, by a ring of three planes  -->  V of every voxel, 12 views at once  -->
 *     12 channels of every voxel, or of cells of 2^3 voxels by their weights
 */

#define STEPS 6
#define PAIRS 12

/* Planes [first, last) of means (STEPS, z, y, x): for each step the mean over 3^3 voxels of
 * (I(p + step) - I(p))^2. padded: I with `margin` voxels more on every side, at least one more than a step
 * reaches; steps: offsets in it. */
KERNEL(mind_differences)(int64_t first, int64_t last, const float *padded, const int64_t *steps, int64_t margin,
                         int64_t z, int64_t y, int64_t x, float *means) {
    const int64_t row = x + 2 * margin, plane = (y + 2 * margin) * row, area = y * x;
    float *scratch = malloc((3 * area + (y + 2) * x + x + 2) * sizeof(float));
    if (!scratch) return NO_MEMORY;
    float *ring = scratch, *rows = ring + 3 * area, *squares = rows + (y + 2) * x;
    for (int s = 0; s < STEPS; s++)
        for (int64_t k = first - 1; k <= last; k++) {
            for (int64_t j = 0; j < y + 2; j++) {
                const float *here = padded + (k + margin) * plane + (j - 1 + margin) * row + margin - 1;
                const float *there = here + steps[s];
                float *sum = rows + j * x;
                for (int64_t i = 0; i < x + 2; i++) squares[i] = (there[i] - here[i]) * (there[i] - here[i]);
                for (int64_t i = 0; i < x; i++) sum[i] = squares[i] + squares[i + 1] + squares[i + 2];
            }
            float *own = ring + (k + 3) % 3 * area;
            for (int64_t i = 0; i < area; i++) own[i] = rows[i] + rows[i + x] + rows[i + 2 * x];
            if (k <= first) continue;
            float *mean = means + (s * z + k - 1) * area;
            for (int64_t i = 0; i < area; i++) mean[i] = (ring[i] + ring[area + i] + ring[2 * area + i]) * (1.0f / 27);
        }
    free(scratch);
    return 0;
}

/* A row of the descriptor's V, before it is limited, and of the least of its differences. */
INLINE void mind_row(const float *const *views, int64_t x, float *scale, float *least) {
    for (int64_t i = 0; i < x; i++) {
        float low = views[0][i], sum = views[0][i];
        for (int p = 1; p < PAIRS; p++) {
            const float v = views[p][i];
            low = v < low ? v : low;
            sum += v;
        }
        least[i] = low;
        scale[i] = sum * (1.0f / PAIRS) - low;
    }
}

INLINE void mind_views(const float *means, const int64_t *views, int64_t at, const float **rows) {
    for (int p = 0; p < PAIRS; p++) rows[p] = means + views[p] + at;
}

/* Sum of V over the planes [first, last) of an image (z, y, x). views: where in `means` the first value of
 * each of the pairs is. */
KERNEL(mind_scale)(int64_t first, int64_t last, const float *means, const int64_t *views, int64_t wide_y,
                   int64_t wide_x, int64_t z, int64_t y, int64_t x) {
    (void)z;
    const int64_t plane = wide_y * wide_x, row = wide_x;
    float *scale = malloc(2 * x * sizeof(float)), *least = scale + x;
    if (!scale) return NO_MEMORY;
    const float *rows[PAIRS];
    double sum = 0;
    for (int64_t k = first; k < last; k++)
        for (int64_t j = 0; j < y; j++) {
            mind_views(means, views, k * plane + j * row, rows);
            mind_row(rows, x, scale, least);
            float part = 0;
            for (int64_t i = 0; i < x; i++) part += scale[i];
            sum += part;
        }
    free(scale);
    return sum;
}

/* Planes [first, last) of cells of channels (PAIRS, z / stride, y / stride, x / stride): exp(-(D - least) / V), V
 * within least_scale to most_scale, averaged over stride^3 voxels, stride 1 or 2, by their weight (z, y, x), which
 * is not read where the stride is 1. */
KERNEL(mind_channels)(int64_t first, int64_t last, const float *means, const int64_t *views, int64_t wide_y,
                      int64_t wide_x, int64_t z, int64_t y, int64_t x, int64_t stride, const float *weight,
                      double least_scale, double most_scale, float *channels) {
    const int64_t plane = wide_y * wide_x, row = wide_x;
    const int64_t cy = y / stride, cx = x / stride, channel = z / stride * cy * cx;
    float *inverse = malloc((3 * x + cx) * sizeof(float)), *least = inverse + x, *found = least + x, *known = found + x;
    if (!inverse) return NO_MEMORY;
    const float *rows[PAIRS];
    const float low = (float)least_scale, high = (float)most_scale;
    for (int64_t k = first; k < last; k++)
        for (int64_t j = 0; j < cy; j++) {
            float *cells = channels + (k * cy + j) * cx;
            for (int64_t sub = 0; sub < stride * stride; sub++) {
                const int64_t vz = k * stride + sub / stride, vy = j * stride + sub % stride;
                mind_views(means, views, vz * plane + vy * row, rows);
                mind_row(rows, x, inverse, least);
                for (int64_t i = 0; i < x; i++) {
                    float v = inverse[i] > low ? inverse[i] : low;
                    v = v < high ? v : high;
                    inverse[i] = 1 / v;
                }
                const float *w = stride > 1 ? weight + (vz * y + vy) * x : NULL;
                for (int p = 0; p < PAIRS; p++) {
                    float *to = cells + p * channel;
                    const float *from = rows[p];
                    if (stride == 1) {
                        for (int64_t i = 0; i < x; i++) to[i] = exponential((least[i] - from[i]) * inverse[i]);
                        continue;
                    }
                    for (int64_t i = 0; i < x; i++) found[i] = exponential((least[i] - from[i]) * inverse[i]) * w[i];
                    if (sub == 0)
                        for (int64_t i = 0; i < cx; i++) to[i] = found[2 * i] + found[2 * i + 1];
                    else
                        for (int64_t i = 0; i < cx; i++) to[i] += found[2 * i] + found[2 * i + 1];
                }
                if (stride == 1) continue;
                for (int64_t i = 0; i < cx; i++) known[i] = (sub ? known[i] : 0) + w[2 * i] + w[2 * i + 1];
            }
            if (stride == 1) continue;
            /* A cell without data has a sum of 0, and may be divided by anything. */
            for (int64_t i = 0; i < cx; i++) known[i] = 1 / (known[i] > 1e-6f ? known[i] : 1);
            for (int p = 0; p < PAIRS; p++)
                for (int64_t i = 0; i < cx; i++) cells[p * channel + i] *= known[i];
        }
    free(inverse);
    return 0;
}
