/* What a network says of a cell, read as probabilities.
 *
 *     scores, a row        [c0 c1 .. cn] [c0 c1 .. cn] ...     channels of a cell side by side, in bfloat16
 *     value, in scratch    c0: PIECE cells in a row            turned, so that each step is along cells
 *                          c1: PIECE cells in a row
 *     shares               group 0: PIECE cells                of the shares of its channels
 */
/* Cells that are worked on at once, and the most channels that they may have. */
#define PIECE 64
#define MOST_CHANNELS 64

INLINE float from_bfloat16(uint16_t half) {
    const uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Rows [first, last) of sums (groups, z * y, x): scale times the sums, over the channels whose group it is, of the
 * softmax of scores in bfloat16, whose cells lie z_step, y_step and `channels` apart. */
KERNEL(softmax_sums)(int64_t first, int64_t last, const uint16_t *scores, int64_t z_step, int64_t y_step, int64_t z,
                     int64_t y, int64_t x, int64_t channels, const int64_t *group, int64_t groups, double scale,
                     float *sums) {
    float value[MOST_CHANNELS * PIECE], shares[MOST_CHANNELS * PIECE], most[PIECE], total[PIECE];
    for (int64_t row = first; row < last; row++) {
        const uint16_t *cells = scores + row / y * z_step + row % y * y_step;
        for (int64_t start = 0; start < x; start += PIECE) {
            const int64_t n = x - start < PIECE ? x - start : PIECE;
            for (int64_t i = 0; i < n; i++)
                for (int64_t c = 0; c < channels; c++)
                    value[c * PIECE + i] = from_bfloat16(cells[(start + i) * channels + c]);
            memcpy(most, value, sizeof most);
            for (int64_t c = 1; c < channels; c++)
                for (int64_t i = 0; i < n; i++)
                    most[i] = value[c * PIECE + i] > most[i] ? value[c * PIECE + i] : most[i];
            memset(total, 0, sizeof total);
            memset(shares, 0, groups * PIECE * sizeof(float));
            for (int64_t c = 0; c < channels; c++) {
                const float *one = value + c * PIECE;
                float *sum = shares + group[c] * PIECE;
                for (int64_t i = 0; i < n; i++) {
                    const float share = exponential(one[i] - most[i]);
                    total[i] += share;
                    sum[i] += share;
                }
            }
            for (int64_t g = 0; g < groups; g++) {
                float *found = sums + (g * z * y + row) * x + start;
                for (int64_t i = 0; i < n; i++) found[i] = (float)scale * shares[g * PIECE + i] / total[i];
            }
        }
    }
    return 0;
}
