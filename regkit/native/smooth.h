/* Box means of width 3 with replicated borders, which are symmetric: they are their own adjoint. */

/* One pass over `count` rows of `width` floats, `stride` apart, in place; `before` and `now` hold a row each. */
INLINE void pass(float *rows, int64_t count, int64_t stride, int64_t width, float *before, float *now) {
    const float third = 1.0f / 3;
    memcpy(before, rows, width * sizeof(float));
    for (int64_t k = 0; k < count; k++) {
        float *here = rows + k * stride;
        const float *after = here + (k + 1 < count ? stride : 0);
        for (int64_t x = 0; x < width; x++) {
            const float own = here[x];
            now[x] = own;
            here[x] = (before[x] + own + after[x]) * third;
        }
        float *swapped = before;
        before = now;
        now = swapped;
    }
}

INLINE void pass_along(float *row, int64_t width, float *copy) {
    const float third = 1.0f / 3;
    /* copy has one float more on either side */
    memcpy(copy + 1, row, width * sizeof(float));
    copy[0] = row[0];
    copy[width + 1] = row[width - 1];
    for (int64_t x = 0; x < width; x++) row[x] = (copy[x] + copy[x + 1] + copy[x + 2]) * third;
}

/* The planes [first, last) of (planes, y, x), along x and y, `passes` times. */
KERNEL(smooth_planes)(int64_t first, int64_t last, const float *in, float *out, int64_t y, int64_t x,
                            int64_t passes) {
    float before[x + 2], now[x + 2];
    for (int64_t z = first; z < last; z++) {
        float *plane = out + z * y * x;
        memcpy(plane, in + z * y * x, y * x * sizeof(float));
        for (int64_t k = 0; k < passes; k++) {
            for (int64_t j = 0; j < y; j++) pass_along(plane + j * x, x, before);
            pass(plane, y, x, x, before, now);
        }
    }
    return 0;
}

/* The columns of y in [first, last) of (channels, z, y, x), along z, in place. */
KERNEL(smooth_columns)(int64_t first, int64_t last, float *volume, int64_t channels, int64_t z, int64_t y,
                             int64_t x, int64_t passes) {
    float before[x], now[x];
    for (int64_t c = 0; c < channels; c++)
        for (int64_t j = first; j < last; j++)
            for (int64_t k = 0; k < passes; k++) pass(volume + (c * z * y + j) * x, z, y * x, x, before, now);
    return 0;
}

/* Means over stride^3 voxels by their weight: planes [first, last) of out (channels * z, y, x), each channel's one
 * after the other; volume (channels, z stride, y stride, x stride), weight of one channel. */
KERNEL(pool)(int64_t first, int64_t last, const float *volume, const float *weight, int64_t z, int64_t y, int64_t x,
             int64_t stride, float *out) {
    const int64_t row = x * stride, plane = y * stride * row;
    float sum[x], known[x];
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
            float *to = out + (p * y + j) * x;
            for (int64_t i = 0; i < x; i++) to[i] = sum[i] / (known[i] > 1e-6f ? known[i] : 1);
        }
    return 0;
}
