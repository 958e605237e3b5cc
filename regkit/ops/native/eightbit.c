/* Convolutions of 3^3 taps in 8 bits. Cells lie in rows (z, y, x + 2, channels), whose first and last repeat their
 * neighbours; beyond the first and last z and y, rows repeat as well.
 *
 *     row of cells   [0|0 1 2 3 ... n|n]    cell: its channels side by side, four to a register's lane
 *                     \___/                 three taps lie together: 3 channels values from one address
 *                       0
 *     nine rows      z - 1: y - 1, y, y + 1;  z: the same;  z + 1: the same
 *     below          cells twice as wide, each for 2^3 of these: four rows, two taps in each
 *     RUN cells of the row at once, 16 or 32 outputs: as many sums as there are registers
 */
#if defined(EIGHTBIT)

#define RUN 12 /* cells of a row at once: with 32 outputs, 24 registers of sums */

/* Four products each. GCC copies the registers of its builtin to and fro, at half the speed; clang's assembler asks for
 * a target of its own, so that it does without these kernels. */
INLINE __m512i dot(__m512i sum, __m512i cells, __m512i weights) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(cells), "v"(weights));
    return sum;
}

/* Add to the sums of every `apart`-th of `tile` cells, from `phase` on, the products of `count` values from as many
 * neighbouring cells on with weights (count / 4, outs, 16 outputs, 4). */
INLINE void add_products(__m512i sums[RUN][2], const int tile, const int outs, const int apart, const int phase,
                         const uint8_t *values, int64_t channels, int64_t count, const int8_t *weights) {
    for (int64_t k = 0; k < count; k += 4, weights += 64 * outs) {
        const __m512i one = _mm512_loadu_si512(weights);
        const __m512i other = outs > 1 ? _mm512_loadu_si512(weights + 64) : one;
        const uint8_t *at = values + k;
#pragma GCC unroll 12
        for (int i = phase; i < tile; i += apart, at += channels) {
            int32_t four;
            memcpy(&four, at, 4);
            const __m512i cell = _mm512_set1_epi32(four);
            sums[i][0] = dot(sums[i][0], cell, one);
            if (outs > 1) sums[i][1] = dot(sums[i][1], cell, other);
        }
    }
}

/* The cells of a tile of a row: `near` (9) are rows of the same level, `below` (4) of that with cells twice as wide. */
INLINE void convolve_tile(const int tile, const int outs, int64_t at, const uint8_t *const *near,
                          int64_t near_channels, const int8_t *near_weights, const float *near_scale,
                          const uint8_t *const *below, int64_t below_channels, const int8_t *below_weights,
                          const float *below_scale, int64_t outputs, float *out, float *statistics) {
    __m512i sums[RUN][2];
#pragma GCC unroll 12
    for (int i = 0; i < tile; i++) sums[i][0] = sums[i][1] = _mm512_setzero_si512();
    /* The three taps of a row lie side by side. */
    for (int row = 0; row < 9; row++, near_weights += 48 * outs * near_channels)
        add_products(sums, tile, outs, 1, 0, near[row] + at * near_channels, near_channels, 3 * near_channels,
                     near_weights);
    __m512 found[RUN][2];
#pragma GCC unroll 2
    for (int k = 0; k < outs; k++) {
        const __m512 scale = _mm512_loadu_ps(near_scale + 16 * k);
#pragma GCC unroll 12
        for (int i = 0; i < tile; i++) found[i][k] = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i][k]), scale);
    }
    if (below != NULL) {
        /* Kept in `out` meanwhile: there are no registers for both. */
#pragma GCC unroll 12
        for (int i = 0; i < tile; i++)
#pragma GCC unroll 2
            for (int k = 0; k < outs; k++) {
                _mm512_storeu_ps(out + i * outputs + 16 * k, found[i][k]);
                sums[i][k] = _mm512_setzero_si512();
            }
        const int64_t step = 32 * outs * below_channels;
        for (int row = 0; row < 4; row++, below_weights += 2 * step) {
            const uint8_t *first = below[row] + at / 2 * below_channels;
            add_products(sums, tile, outs, 2, 0, first, below_channels, 2 * below_channels, below_weights);
            add_products(sums, tile, outs, 2, 1, first + below_channels, below_channels, 2 * below_channels,
                         below_weights + step);
        }
#pragma GCC unroll 2
        for (int k = 0; k < outs; k++) {
            const __m512 scale = _mm512_loadu_ps(below_scale + 16 * k);
#pragma GCC unroll 12
            for (int i = 0; i < tile; i++)
                found[i][k] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[i][k]), scale,
                                              _mm512_loadu_ps(out + i * outputs + 16 * k));
        }
    }
#pragma GCC unroll 2
    for (int k = 0; k < outs; k++) {
        float *sum = statistics + 16 * k, *square = sum + outputs, *most = square + outputs, *least = most + outputs;
        __m512 s = _mm512_loadu_ps(sum), q = _mm512_loadu_ps(square), m = _mm512_loadu_ps(most),
               l = _mm512_loadu_ps(least);
#pragma GCC unroll 12
        for (int i = 0; i < tile; i++) {
            const __m512 value = found[i][k];
            _mm512_storeu_ps(out + i * outputs + 16 * k, value);
            s = _mm512_add_ps(s, value);
            q = _mm512_fmadd_ps(value, value, q);
            m = _mm512_max_ps(m, value);
            l = _mm512_min_ps(l, value);
        }
        _mm512_storeu_ps(sum, s);
        _mm512_storeu_ps(square, q);
        _mm512_storeu_ps(most, m);
        _mm512_storeu_ps(least, l);
    }
}

INLINE void convolve_row(const int outs, const uint8_t *const *near, int64_t near_channels,
                         const int8_t *near_weights, const float *near_scale, const uint8_t *const *below,
                         int64_t below_channels, const int8_t *below_weights, const float *below_scale, int64_t x,
                         int64_t outputs, float *out, float *statistics) {
    int64_t at = 0;
#define TILES(tile)                                                                                             \
    for (; at + tile <= x; at += tile)                                                                          \
        convolve_tile(tile, outs, at, near, near_channels, near_weights, near_scale, below, below_channels,     \
                      below_weights, below_scale, outputs, out + at * outputs, statistics);
    TILES(RUN)
    TILES(4)
    TILES(2)
    if (below == NULL) {
        TILES(1)
    }
#undef TILES
}

/* Rows [first, last) of out (z * y, x, outputs): the convolution of `near` (z, y, x + 2, near_channels), and, unless it
 * is null, of `below` (z / 2, y / 2, x / 2 + 2, below_channels) with each cell as 2^3. Of n = 32 outputs, or 16 where
 * their number is no multiple of it, near_weights (outputs / n, 9 rows, 3 taps, near_channels / 4, n, 4) and
 * below_weights (outputs / n, parity of z, of y, 4 rows, parity of x, 2 taps, below_channels / 4, n, 4) lie together;
 * sums of products are multiplied by the scale of their output. statistics (z * y, 4, outputs): sum, sum of squares,
 * largest and smallest value of a row. */
KERNEL(convolve_eightbit)(int64_t first, int64_t last, const uint8_t *near, int64_t near_channels,
                          const int8_t *near_weights, const float *near_scale, const uint8_t *below,
                          int64_t below_channels, const int8_t *below_weights, const float *below_scale,
                          int64_t z, int64_t y, int64_t x, int64_t outputs, float *convolved, float *statistics) {
    const int64_t together = outputs % 32 ? 16 : 32;
    for (int64_t row = first; row < last; row++) {
        const int64_t at_z = row / y, at_y = row % y;
        const uint8_t *near_rows[9], *below_rows[4];
        for (int k = 0; k < 9; k++) {
            int64_t from_z = at_z + k / 3 - 1, from_y = at_y + k % 3 - 1;
            from_z = from_z < 0 ? 0 : from_z >= z ? z - 1 : from_z;
            from_y = from_y < 0 ? 0 : from_y >= y ? y - 1 : from_y;
            near_rows[k] = near + (from_z * y + from_y) * (x + 2) * near_channels;
        }
        for (int k = 0; k < 4 && below != NULL; k++) {
            int64_t from_z = (at_z + 1) / 2 + k / 2 - 1, from_y = (at_y + 1) / 2 + k % 2 - 1;
            from_z = from_z < 0 ? 0 : from_z >= z / 2 ? z / 2 - 1 : from_z;
            from_y = from_y < 0 ? 0 : from_y >= y / 2 ? y / 2 - 1 : from_y;
            below_rows[k] = below + (from_z * (y / 2) + from_y) * (x / 2 + 2) * below_channels;
        }
        float *found = convolved + row * x * outputs, *of_row = statistics + row * 4 * outputs;
        for (int64_t c = 0; c < outputs; c++) {
            of_row[c] = of_row[outputs + c] = 0;
            of_row[2 * outputs + c] = -INFINITY;
            of_row[3 * outputs + c] = INFINITY;
        }
        for (int64_t c = 0; c < outputs; c += together) {
            const int8_t *near_part = near_weights + c * 27 * near_channels;
            const int8_t *below_part =
                below == NULL ? NULL
                              : below_weights + (c * 4 + (at_z % 2 * 2 + at_y % 2) * together) * 16 * below_channels;
            const float *scale = below == NULL ? NULL : below_scale + c;
            const uint8_t *const *others = below == NULL ? NULL : below_rows;
            if (together == 32)
                convolve_row(2, near_rows, near_channels, near_part, near_scale + c, others, below_channels,
                             below_part, scale, x, outputs, found + c, of_row + c);
            else
                convolve_row(1, near_rows, near_channels, near_part, near_scale + c, others, below_channels,
                             below_part, scale, x, outputs, found + c, of_row + c);
        }
    }
    return 0;
}
/* Rows [first, last) of out (z * y, x + 2, channels): factor * value + term of each channel, from 0 to 255. */
KERNEL(to_eightbit)(int64_t first, int64_t last, const float *values, const float *factor, const float *term, int64_t x,
                    int64_t channels, uint8_t *cells) {
    for (int64_t row = first; row < last; row++) {
        uint8_t *found = cells + row * (x + 2) * channels;
        for (int64_t i = 0; i < x; i++)
            for (int64_t c = 0; c < channels; c += 16) {
                const __m512 value = _mm512_fmadd_ps(_mm512_loadu_ps(values + (row * x + i) * channels + c),
                                                     _mm512_loadu_ps(factor + c), _mm512_loadu_ps(term + c));
                const __m512i whole = _mm512_cvtps_epi32(_mm512_max_ps(value, _mm512_setzero_ps()));
                _mm_storeu_si128((__m128i *)(found + (i + 1) * channels + c), _mm512_cvtusepi32_epi8(whole));
            }
        memcpy(found, found + channels, channels);
        memcpy(found + (x + 1) * channels, found + x * channels, channels);
    }
    return 0;
}

/* Rows [first, last) of out (z / 2 * y / 2, x / 2 + 2, channels): the largest of each 2^3 cells. */
KERNEL(pool_eightbit)(int64_t first, int64_t last, const uint8_t *cells, int64_t y, int64_t wide, int64_t channels,
                      uint8_t *largest_cells) {
    const int64_t x = wide - 2, along = wide * channels;
    for (int64_t row = first; row < last; row++) {
        const uint8_t *from = cells + (row / (y / 2) * 2 * y + row % (y / 2) * 2) * along + channels;
        uint8_t *found = largest_cells + row * (x / 2 + 2) * channels + channels;
        for (int64_t i = 0; i < x / 2; i++)
            for (int64_t c = 0; c < channels; c += 16) {
                const uint8_t *at = from + 2 * i * channels + c;
                __m128i most = _mm_setzero_si128();
#pragma GCC unroll 8
                for (int k = 0; k < 8; k++) {
                    const uint8_t *one = at + (k / 4) * y * along + (k / 2 % 2) * along + k % 2 * channels;
                    most = _mm_max_epu8(most, _mm_loadu_si128((const __m128i *)one));
                }
                _mm_storeu_si128((__m128i *)(found + i * channels + c), most);
            }
        memcpy(found - channels, found, channels);
        memcpy(found + x / 2 * channels, found + (x / 2 - 1) * channels, channels);
    }
    return 0;
}

#undef RUN
#endif
