/* Box means of width 3 with replicated borders, which are symmetric: they are their own adjoint.
 *
 *     along x: a row at once                along y and z: a sweep down columns, vectors side by side
 *
 *     a a b c d e ... z z                   row t      read: what pass 0 is given
 *       \|/                                 row t - 1  pass 0 is done, pass 1 is given it
 *        o  three passes are one sum        row t - 2  pass 1 is done, pass 2 is given it
 *           over seven, but for the         row t - 3  written
 *           three at either end
 *
 * So three passes read and write a volume twice, not six times. pool: each cell of stride^3 voxels by its weights. */

/* Steps between what is worked on and what is fetched from memory, which does not see so long steps coming. */
#define STEPS_AHEAD 6

/* As many box means one after the other along an axis of `count`, `stride` floats from one to the next, of the vectors
 * side by side: in one sweep, each pass a step behind the one before it. Of the last vector the first `lanes` alone. */
INLINE void sweep(const int passes, const int vectors, float *at, int64_t count, int64_t stride, int64_t lanes) {
    const vec third = all(1.0f / 3);
    vec before[3][4] = {0}, here[3][4] = {0}, next[4] = {0};
    for (int64_t t = 0; t < count + passes; t++) {
        const float *from = at + t * stride;
        for (int v = 0; v < vectors; v++) __builtin_prefetch(from + STEPS_AHEAD * stride + v * WIDTH);
        for (int v = 0; v < vectors; v++)
            if (t < count) next[v] = lanes < WIDTH ? load_some(from + v * WIDTH, lanes) : load(from + v * WIDTH);
        for (int p = 0; p < passes; p++) {
            const int64_t k = t - p; /* what this pass is given now; at the end once more its last */
            if (k < 0 || k > count) continue;
            for (int v = 0; v < vectors; v++) {
                const vec after = k < count ? next[v] : here[p][v];
                if (k > 0) next[v] = (before[p][v] + here[p][v] + after) * third;
                before[p][v] = k > 0 ? here[p][v] : after;
                here[p][v] = after;
            }
        }
        if (t < passes) continue;
        float *to = at + (t - passes) * stride;
        for (int v = 0; v < vectors; v++)
            if (lanes < WIDTH) store_some(to + v * WIDTH, next[v], lanes);
            else store(to + v * WIDTH, next[v]);
    }
}

INLINE void sweep_rows(const int passes, float *at, int64_t count, int64_t stride, int64_t width) {
    int64_t i = 0;
    for (; i + 4 * WIDTH <= width; i += 4 * WIDTH) sweep(passes, 4, at + i, count, stride, WIDTH);
    for (; i + WIDTH <= width; i += WIDTH) sweep(passes, 1, at + i, count, stride, WIDTH);
    if (i < width) sweep(passes, 1, at + i, count, stride, width - i);
}

/* So many box means of a row; `in` and `out` may be one. copy: scratch for a row. */
INLINE void along(const int passes, const float *in, float *out, int64_t width, float *copy) {
    if (width < WIDTH + 6) {
        memmove(out, in, width * sizeof(float));
        for (int p = 0; p < passes; p++) {
            memcpy(copy, out, width * sizeof(float));
            for (int64_t i = 0; i < width; i++)
                out[i] = (copy[i > 0 ? i - 1 : 0] + copy[i] + copy[i + 1 < width ? i + 1 : i]) * (1.0f / 3);
        }
        return;
    }
    if (in == out) in = memcpy(copy, in, width * sizeof(float));
    /* The three next to an end hang on the six there. */
    float ends[2][6];
    for (int i = 0; i < 6; i++) {
        ends[0][i] = in[i];
        ends[1][i] = in[width - 1 - i];
    }
    for (int e = 0; e < 2; e++)
        for (int p = 0; p < passes; p++) {
            float before = ends[e][0];
            for (int i = 0; i < 5 - p; i++) {
                const float here = ends[e][i];
                ends[e][i] = (before + here + ends[e][i + 1]) * (1.0f / 3);
                before = here;
            }
        }
    const int64_t inner = width - 6;
    for (int64_t i = 0;; i = next_vector(i, inner)) {
        const float *at = in + i;
        const vec near = load(at + 2) + load(at + 4), own = load(at + 3);
        store(out + i + 3, passes == 1 ? (near + own) * (1.0f / 3)
                                       : (load(at) + load(at + 6) + 3 * (load(at + 1) + load(at + 5)) + 6 * near + 7 * own) *
                                             (1.0f / 27));
        if (i + WIDTH >= inner) break;
    }
    for (int i = 0; i < 3; i++) {
        out[i] = ends[0][i];
        out[width - 1 - i] = ends[1][i];
    }
}

INLINE void smooth_plane(const int passes, const float *in, float *out, int64_t y, int64_t x, float *copy) {
    for (int64_t j = 0; j < y; j++) along(passes, in + j * x, out + j * x, x, copy);
    sweep_rows(passes, out, y, x, x);
}

/* The planes [first, last) of (planes, y, x), along x and y, `passes` times, at least once. */
KERNEL(smooth_planes)(int64_t first, int64_t last, const float *volume, float *smoothed, int64_t y, int64_t x,
                      int64_t passes) {
    float *copy = malloc(x * sizeof(float));
    if (!copy) return NO_MEMORY;
    for (int64_t z = first; z < last; z++) {
        float *plane = smoothed + z * y * x;
        const float *from = volume + z * y * x;
        for (int64_t left = passes; left > 0; left -= left < 3 ? 1 : 3) {
            if (left < 3) smooth_plane(1, from, plane, y, x, copy);
            else smooth_plane(3, from, plane, y, x, copy);
            from = plane;
        }
    }
    free(copy);
    return 0;
}

/* The columns of y in [first, last) of (channels, z, y, x), along z, in place. */
KERNEL(smooth_columns)(int64_t first, int64_t last, float *volume, int64_t channels, int64_t z, int64_t y, int64_t x,
                       int64_t passes) {
    for (int64_t c = 0; c < channels; c++)
        for (int64_t left = passes; left > 0; left -= left < 3 ? 1 : 3) {
            float *rows = volume + (c * z * y + first) * x;
            if (left < 3) sweep_rows(1, rows, z, y * x, (last - first) * x);
            else sweep_rows(3, rows, z, y * x, (last - first) * x);
        }
    return 0;
}

/* Means over stride^3 voxels by their weight: planes [first, last) of means (channels * z, y, x), each channel's one
 * after the other; volume (channels, z stride, y stride, x stride), weight of one channel. */
KERNEL(pool)(int64_t first, int64_t last, const float *volume, const float *weight, int64_t z, int64_t y, int64_t x,
             int64_t stride, float *means) {
    const int64_t row = x * stride, plane = y * stride * row;
    float *sum = malloc(2 * x * sizeof(float)), *known = sum + x;
    if (!sum) return NO_MEMORY;
    for (int64_t p = first; p < last; p++)
        for (int64_t j = 0; j < y; j++) {
            for (int64_t i = 0; i < x; i++) sum[i] = known[i] = 0;
            for (int64_t sub = 0; sub < stride * stride; sub++) {
                const int64_t in_plane = (j * stride + sub % stride) * row;
                const float *v = volume + (p * stride + sub / stride) * plane + in_plane;
                const float *w = weight + (p % z * stride + sub / stride) * plane + in_plane;
                for (int64_t k = 0; k < stride; k++)
                    for (int64_t i = 0; i < x; i++) {
                        sum[i] += w[i * stride + k] * v[i * stride + k];
                        known[i] += w[i * stride + k];
                    }
            }
            /* Without data the sum is 0, and may be divided by anything. */
            float *to = means + (p * y + j) * x;
            for (int64_t i = 0; i < x; i++) to[i] = sum[i] / (known[i] > 1e-6f ? known[i] : 1);
        }
    free(sum);
    return 0;
}
