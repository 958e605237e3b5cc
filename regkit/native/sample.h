/* Trilinear interpolation at arbitrary places. */

#define POINTS 128

/* Blocks [first, last) of POINTS places of where (3, count), index coordinates (x, y, z): out (channels, count)
 * of volume (channels, z, y, x). Outside, the border goes on, or with `zeros` there is 0 from one voxel on. */
KERNEL(sample)(int64_t first, int64_t last, const float *volume, int64_t channels, int64_t z, int64_t y,
               int64_t x, const float *where, int64_t count, int64_t zeros, float *out) {
    int32_t at[8][POINTS];
    float weight[8][POINTS];
    const int64_t size[3] = {x, y, z}, stride[3] = {1, x, y * x};
    for (int64_t b = first; b < last; b++) {
        const int64_t start = b * POINTS, n = count - start < POINTS ? count - start : POINTS;
        for (int k = 0; k < 8; k++)
            for (int64_t i = 0; i < n; i++) at[k][i] = 0, weight[k][i] = 1;
        for (int axis = 0; axis < 3; axis++) {
            const float *p = where + axis * count + start;
            const float end = (float)(size[axis] - 1);
            const int32_t step = (int32_t)stride[axis];
            int32_t low_at[POINTS], high_at[POINTS];
            float low_weight[POINTS], high_weight[POINTS];
            for (int64_t i = 0; i < n; i++) {
                const float least = zeros ? -1 : 0, most = zeros ? end + 1 : end;
                /* NaN goes to an end. */
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
                for (int64_t i = 0; i < n; i++) at[k][i] += a[i], weight[k][i] *= w[i];
            }
        }
        for (int64_t c = 0; c < channels; c++) {
            const float *from = volume + c * z * y * x;
            float *to = out + c * count + start;
            for (int64_t i = 0; i < n; i++) {
                float sum = 0;
                for (int k = 0; k < 8; k++) sum += weight[k][i] * from[at[k][i]];
                to[i] = sum;
            }
        }
    }
    return 0;
}
