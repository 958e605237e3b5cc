/* Separable convolution with a symmetric kernel, the border values going on.
 *
 *     rows, along x                          across, along an axis n before the last ones
 *
 *     a a|a b c d e|e e   line in scratch      plane k - 1  . . . . . . .   times taps[1]
 *         2 1 0 1 2       taps, the middle     plane k      . . . . . . .   times taps[0]
 *             ^           one is the first     plane k + 1  . . . . . . .   times taps[1]
 *
 * Across, whole planes of `inner` values are added up: memory is read in its order. */

/* Rows [first, last) of (rows, x), along x. taps: radius + 1 weights, the middle one first. */
KERNEL(blur_rows)(int64_t first, int64_t last, const float *in, float *out, int64_t x, const float *taps,
                  int64_t radius) {
    float *line = malloc((x + 2 * radius) * sizeof(float));
    if (!line) return NO_MEMORY;
    for (int64_t r = first; r < last; r++) {
        const float *from = in + r * x;
        float *to = out + r * x;
        for (int64_t i = 0; i < radius; i++) line[i] = from[0], line[x + radius + i] = from[x - 1];
        memcpy(line + radius, from, x * sizeof(float));
        const float *middle = line + radius;
        for (int64_t i = 0; i < x; i++) to[i] = taps[0] * middle[i];
        for (int64_t t = 1; t <= radius; t++)
            for (int64_t i = 0; i < x; i++) to[i] += taps[t] * (middle[i - t] + middle[i + t]);
    }
    free(line);
    return 0;
}

/* Planes [first, last) of out (outer, n, inner), along n. */
KERNEL(blur_across)(int64_t first, int64_t last, const float *in, float *out, int64_t n, int64_t inner,
                    const float *taps, int64_t radius) {
    for (int64_t p = first; p < last; p++) {
        const int64_t start = p / n * n, k = p % n;
        float *to = out + p * inner;
        const float *own = in + p * inner;
        for (int64_t i = 0; i < inner; i++) to[i] = taps[0] * own[i];
        for (int64_t t = 1; t <= radius; t++) {
            const float *low = in + (start + (k > t ? k - t : 0)) * inner;
            const float *high = in + (start + (k + t < n ? k + t : n - 1)) * inner;
            for (int64_t i = 0; i < inner; i++) to[i] += taps[t] * (low[i] + high[i]);
        }
    }
    return 0;
}
