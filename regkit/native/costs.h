/* The coarse stage: costs of every displacement in a cube, and which of them a smooth field would choose. */

/* Rows of y that are worked on at once: what they need stays in the cache. */
#define TILE 8

/* out[dx][x] = sum over the channels of fixed[x] moving[x + dx]; at least WIDTH cells, else one by one. */
INLINE void products(const int side, const float *fixed, int64_t fixed_channel, const float *moving,
                     int64_t moving_channel, int64_t channels, int64_t x, float *out) {
    if (x < WIDTH) {
        for (int d = 0; d < side; d++)
            for (int64_t i = 0; i < x; i++) {
                float sum = 0;
                for (int64_t c = 0; c < channels; c++)
                    sum += fixed[c * fixed_channel + i] * moving[c * moving_channel + i + d];
                out[d * x + i] = sum;
            }
        return;
    }
    for (int64_t i = 0;;) {
        vec sums[side];
        for (int d = 0; d < side; d++) sums[d] = all(0);
        for (int64_t c = 0; c < channels; c++) {
            const vec here = load(fixed + c * fixed_channel + i);
            const float *there = moving + c * moving_channel + i;
            for (int d = 0; d < side; d++) sums[d] += here * load(there + d);
        }
        for (int d = 0; d < side; d++) store(out + d * x + i, sums[d]);
        if (i + WIDTH >= x) break;
        /* The last block ends with the row, and does some cells again. */
        i = i + 2 * WIDTH <= x ? i + WIDTH : x - WIDTH;
    }
}

/* Rows [first, last) of a plane of every channel side by side, (channels, rows, x), their squares summed, and
 * the weight. In the volume the channels of a cell may lie a power of two apart, which a cache holds badly. */
INLINE void gather(const float *volume, const float *weight, int64_t channels, int64_t channel, int64_t plane,
                   int64_t first, int64_t last, int64_t x, float *rows, float *squares, float *weights) {
    const int64_t count = (last - first) * x, start = plane + first * x;
    memset(squares, 0, count * sizeof(float));
    for (int64_t c = 0; c < channels; c++) {
        const float *from = volume + c * channel + start;
        float *to = rows + c * count;
        for (int64_t i = 0; i < count; i++) {
            to[i] = from[i];
            squares[i] += from[i] * from[i];
        }
    }
    memcpy(weights, weight + start, count * sizeof(float));
}

/* Planes [first, last) of costs (side^3, z, y, x), side = 2 radius + 1, for boxes of 3^3 cells as in
 * regkit.costvolume.cost_volume; NaN where less than a quarter of the box has data. fixed (channels, z, y, x);
 * moving the same with radius cells more on every side; their weights without the channels. Returns how many
 * costs are NaN, or -infinity if there is no memory. */
INLINE double cost_planes(const int side, int64_t first, int64_t last, const float *fixed,
                          const float *fixed_weight, const float *moving, const float *moving_weight,
                          int64_t channels, int64_t z, int64_t y, int64_t x, float *costs) {
    const int64_t wide_y = y + side - 1, wide_x = x + side - 1, wide_z = z + side - 1;
    const int64_t rows = TILE + 2, wide_rows = rows + side - 1, block = TILE * x, cells = z * y * x;
    const int64_t sizes[] = {(channels + 2) * rows * x, (channels + 2) * wide_rows * wide_x, side * x,
                             2 * (x + 2), 2 * side * rows * x, 6 * side * side * block};
    int64_t floats = 0;
    for (int k = 0; k < 6; k++) floats += sizes[k];
    float *scratch = malloc(floats * sizeof(float));
    if (!scratch) return -INFINITY;
    float *here = scratch, *there = here + sizes[0], *dots = there + sizes[1], *difference = dots + sizes[2];
    float *boxed = difference + sizes[3], *ring = boxed + sizes[4], *weight = difference + x + 2;
    const float mean = 1.0f / channels, least = 0.25f * 27;
    int64_t unknown = 0;
    difference[0] = difference[x + 1] = weight[0] = weight[x + 1] = 0;
    for (int64_t top = 0; top < y; top += TILE) {
        const int64_t end = top + TILE < y ? top + TILE : y;
        const int64_t low = top > 0 ? top - 1 : 0, high = end < y ? end + 1 : y, count = high - low;
        float *here_squares = here + channels * count * x, *here_weights = here_squares + count * x;
        const int64_t wide_count = (count + side - 1) * wide_x;
        float *there_squares = there + channels * wide_count, *there_weights = there_squares + wide_count;
        for (int dz = 0; dz < side; dz++)
            for (int64_t k = first - 1; k <= last; k++) {
                /* The sums over boxes of 3 x 3 in the plane k, for the three planes that a box spans. */
                float *sums = ring + (k + 3) % 3 * (2 * side * side * block);
                if (k < 0 || k >= z) {
                    memset(sums, 0, 2 * side * side * block * sizeof(float));
                } else {
                    gather(fixed, fixed_weight, channels, cells, k * y * x, low, high, x, here, here_squares,
                           here_weights);
                    gather(moving, moving_weight, channels, wide_z * wide_y * wide_x, (k + dz) * wide_y * wide_x,
                           low, high + side - 1, wide_x, there, there_squares, there_weights);
                    for (int dy = 0; dy < side; dy++) {
                        memset(boxed, 0, sizes[4] * sizeof(float));
                        for (int64_t j = low; j < high; j++) {
                            const int64_t own = (j - low) * x, other = (j - low + dy) * wide_x;
                            products(side, here + own, count * x, there + other, wide_count, channels, x, dots);
                            for (int dx = 0; dx < side; dx++) {
                                const float *square = there_squares + other + dx;
                                for (int64_t i = 0; i < x; i++) {
                                    const float w = here_weights[own + i] * there_weights[other + dx + i];
                                    const float d = here_squares[own + i] + square[i] - 2 * dots[dx * x + i];
                                    weight[i + 1] = w;
                                    /* Rounding can leave a tiny negative where both sides agree. */
                                    difference[i + 1] = (d > 0 ? d : 0) * w;
                                }
                                float *row = boxed + (2 * dx * rows + j - top + 1) * x;
                                float *weights = row + rows * x;
                                for (int64_t i = 0; i < x; i++) {
                                    row[i] = difference[i] + difference[i + 1] + difference[i + 2];
                                    weights[i] = weight[i] + weight[i + 1] + weight[i + 2];
                                }
                            }
                        }
                        for (int q = 0; q < 2 * side; q++) {
                            const float *row = boxed + q * rows * x;
                            float *sum = sums + (dy * 2 * side + q) * block;
                            for (int64_t i = 0; i < (end - top) * x; i++)
                                sum[i] = row[i] + row[i + x] + row[i + 2 * x];
                        }
                    }
                }
                if (k <= first) continue;
                for (int dy = 0; dy < side; dy++)
                    for (int dx = 0; dx < side; dx++) {
                        const float *a = ring + (dy * side + dx) * 2 * block;
                        const float *b = a + 2 * side * side * block, *c = b + 2 * side * side * block;
                        float *cost = costs + ((dz * side + dy) * side + dx) * cells + (k - 1) * y * x + top * x;
                        for (int64_t i = 0; i < (end - top) * x; i++) {
                            const float w = a[block + i] + b[block + i] + c[block + i];
                            const float found = (a[i] + b[i] + c[i]) * mean / w;
                            cost[i] = w > least ? found : NAN;
                            unknown += !(w > least);
                        }
                    }
            }
    }
    free(scratch);
    return (double)unknown;
}

KERNEL(costs)(int64_t first, int64_t last, const float *fixed, const float *fixed_weight, const float *moving,
              const float *moving_weight, int64_t channels, int64_t z, int64_t y, int64_t x, int64_t radius,
              float *costs) {
#define OF(side) cost_planes(side, first, last, fixed, fixed_weight, moving, moving_weight, channels, z, y, x, costs)
    switch (radius) {
    case 1: return OF(3);
    case 2: return OF(5);
    case 3: return OF(7);
    default: return OF(9);
    }
#undef OF
}

/* Cells that are worked on at once, all displacements of them. */
#define BLOCK 2048

/* Blocks [first, last) of BLOCK cells of costs (displacements, cells): NaN becomes the mean of the cell's other
 * costs, 0 if it has none. */
KERNEL(fill_unknown)(int64_t first, int64_t last, float *costs, int64_t displacements, int64_t cells) {
    float sum[BLOCK], count[BLOCK];
    for (int64_t b = first; b < last; b++) {
        const int64_t start = b * BLOCK, n = cells - start < BLOCK ? cells - start : BLOCK;
        memset(sum, 0, sizeof sum);
        memset(count, 0, sizeof count);
        for (int64_t k = 0; k < displacements; k++) {
            const float *cost = costs + k * cells + start;
            for (int64_t i = 0; i < n; i++) {
                const int known = cost[i] == cost[i];
                sum[i] += known ? cost[i] : 0;
                count[i] += known ? 1 : 0;
            }
        }
        for (int64_t i = 0; i < n; i++) sum[i] /= count[i] > 1 ? count[i] : 1;
        for (int64_t k = 0; k < displacements; k++) {
            float *cost = costs + k * cells + start;
            for (int64_t i = 0; i < n; i++) cost[i] = cost[i] == cost[i] ? cost[i] : sum[i];
        }
    }
    return 0;
}

/* Where each of `side` displacements along x beats the best so far, for WIDTH cells. */
INLINE void challenge(const int side, const float *costs, int64_t cells, vec ux, vec part, float theta, int32_t k,
                      float *best_at, int32_t *which_at) {
    const int r = side / 2;
    vec best = load(best_at);
    ivec which = *(const loose_ivec *)which_at;
    for (int d = 0; d < side; d++) {
        const float dx = (float)(d - r);
        const vec sum = load(costs + d * cells) + (part + (theta * dx * dx - 2 * theta * dx * ux));
        const ivec better = sum < best;
        best = (vec)(((ivec)sum & better) | ((ivec)best & ~better));
        which = ((k + d) & better) | (which & ~better);
    }
    store(best_at, best);
    *(loose_ivec *)which_at = which;
}

INLINE void choose_cells(const int side, int64_t start, int64_t n, const float *costs, int64_t cells, float theta,
                         const float *field, float *chosen) {
    const int r = side / 2;
    float best[BLOCK];
    int32_t which[BLOCK];
    const float *ux = field, *uy = ux + cells, *uz = uy + cells;
    for (int64_t i = 0; i < n; i++) best[i] = INFINITY, which[i] = 0;
    for (int dz = -r; dz <= r; dz++)
        for (int dy = -r; dy <= r; dy++) {
            const int32_t k = ((dz + r) * side + dy + r) * side;
            /* |u|^2 is the same for every displacement, so it is left out. */
            const float square = theta * (dz * dz + dy * dy), along_y = -2 * theta * dy, along_z = -2 * theta * dz;
            for (int64_t i = 0;;) {
                const int64_t at = start + i;
                challenge(side, costs + k * cells + at, cells, load(ux + at),
                          square + along_y * load(uy + at) + along_z * load(uz + at), theta, k, best + i, which + i);
                if (i + WIDTH >= n) break;
                /* The last vector ends with the block; what it does twice comes to the same. */
                i = i + 2 * WIDTH <= n ? i + WIDTH : n - WIDTH;
            }
        }
    for (int64_t i = 0; i < n; i++) {
        chosen[start + i] = (float)(which[i] % side - r);
        chosen[cells + start + i] = (float)(which[i] / side % side - r);
        chosen[2 * cells + start + i] = (float)(which[i] / (side * side) - r);
    }
}

/* Blocks [first, last) of BLOCK cells, of which there are 16 at least: chosen (3, cells) is the displacement d,
 * components (x, y, z), that minimises cost + theta |d - field|^2, the first of equals. */
KERNEL(choose)(int64_t first, int64_t last, const float *costs, int64_t cells, int64_t radius, double theta,
               const float *field, float *chosen) {
    for (int64_t b = first; b < last; b++) {
        int64_t start = b * BLOCK, n = cells - start < BLOCK ? cells - start : BLOCK;
        if (n < WIDTH) {
            start = cells - WIDTH;
            n = WIDTH;
        }
        switch (radius) {
        case 1: choose_cells(3, start, n, costs, cells, (float)theta, field, chosen); break;
        case 2: choose_cells(5, start, n, costs, cells, (float)theta, field, chosen); break;
        case 3: choose_cells(7, start, n, costs, cells, (float)theta, field, chosen); break;
        default: choose_cells(9, start, n, costs, cells, (float)theta, field, chosen); break;
        }
    }
    return 0;
}
