/* The coarse stage: costs of every displacement in a cube, and which of them a smooth field would choose.
 *
 * The moving map has `radius` cells more on every side, so that every displacement of a cell leads to one:
 *
 *     moving, a plane       fixed            costs: a volume (z, y, x) for each of side^3 displacements
 *     + + + + + + + +                        d = (dx, dy, dz), numbered dz, dy, dx from -radius on
 *     + . . . . . . +       . . . . . .
 *     + . . . . . . +  <--  . c . . . .      cost(d, c) = mean over the box of 3^3 cells around c of the
 *     + . . . . . . +       . . . . . .      weighted |F(c) - M(c + d)|^2
 *     + + + + + + + +
 *
 * `costs` goes through a tile of TILE rows of y, all x, and a range of z, for one dz after the other. Of every
 * plane k it makes the sums over 3 x 3 cells for all dy and dx; a ring of three planes gives the boxes:
 *
 *     ring  [k - 2] [k - 1] [k]   -->   costs of plane k - 1
 *
 * `choose` goes through rows, and for each of them through all displacements. */

/* Rows of y that are worked on at once: what they need stays in the cache. */
#define TILE 8

/* Displacements along an axis. */
#define MOST_SIDE 9

/* Cells beyond both ends of a row of differences, one of which counts. */
#define ENDS 16

/* A tile of a map: rows of planes with the values of all channels side by side, their squares summed, and the
 * weight, 0 beyond the last cell. Values are float, one row a channel, or two channels of 16 bits in a row of 32;
 * their squares are then int32. */
typedef struct {
    int64_t first, low, rows, channels, pitch;
    void *values, *squares;
    float *weights;
} Tile;

INLINE int64_t tile_row(const Tile *t, int64_t plane, int64_t row) {
    return (plane - t->first) * t->rows + row - t->low;
}

/* Fills a tile with planes [tile->first, last) of a map (channels, z, y, x), those of them that there are. In 16
 * bits values are taken times `scale`. */
static void fill(int shorts, const Tile *t, int64_t last, const float *volume, const float *weight,
                 int64_t channels, int64_t z, int64_t y, int64_t x, float scale) {
    for (int64_t k = t->first < 0 ? 0 : t->first; k < last && k < z; k++)
        for (int64_t j = t->low; j < t->low + t->rows; j++) {
            const int64_t row = tile_row(t, k, j), from = (k * y + j) * x;
            float *weights = t->weights + row * t->pitch;
            memcpy(weights, weight + from, x * sizeof(float));
            if (shorts) {
                int32_t *to = (int32_t *)t->values + row * t->channels * t->pitch;
                int32_t *squares = (int32_t *)t->squares + row * t->pitch;
                memset(squares, 0, x * sizeof(int32_t));
                for (int64_t c = 0; c < channels; c += 2, to += t->pitch) {
                    const float *one = volume + c * z * y * x + from;
                    const float *other = c + 1 < channels ? one + z * y * x : one;
                    const float scale_of_other = c + 1 < channels ? scale : 0;
                    INDEPENDENT
                    for (int64_t i = 0; i < x; i++) {
                        const int32_t a = (int32_t)rintf(one[i] * scale);
                        const int32_t b = (int32_t)rintf(other[i] * scale_of_other);
                        to[i] = (int32_t)((uint32_t)b << 16 | ((uint32_t)a & 65535));
                        squares[i] += a * a + b * b;
                    }
                }
            } else {
                float *to = (float *)t->values + row * t->channels * t->pitch;
                float *squares = (float *)t->squares + row * t->pitch;
                memset(squares, 0, x * sizeof(float));
                for (int64_t c = 0; c < channels; c++, to += t->pitch) {
                    const float *one = volume + c * z * y * x + from;
                    INDEPENDENT
                    for (int64_t i = 0; i < x; i++) {
                        to[i] = one[i];
                        squares[i] += one[i] * one[i];
                    }
                }
            }
        }
}

/* The weighted squared differences of a row of cells and those dx further on, dx < side, and the weights:
 * difference and weight (side, ENDS + pitch + ENDS). */
INLINE void differences(const int shorts, const int side, const Tile *fixed, const Tile *moving, int64_t own,
                        int64_t other, float *difference, float *weight) {
    const int64_t pitch = fixed->pitch, wide = moving->pitch, channels = fixed->channels;
    const float *here_weights = fixed->weights + own * pitch, *there_weights = moving->weights + other * wide;
    for (int64_t i = 0; i < pitch; i += WIDTH) {
        vec found[MOST_SIDE];
        if (shorts) {
            const int32_t *here = (const int32_t *)fixed->values + own * channels * pitch + i;
            const int32_t *there = (const int32_t *)moving->values + other * channels * wide + i;
            ivec sums[MOST_SIDE];
            for (int d = 0; d < side; d++) sums[d] = (ivec){0};
            for (int64_t c = 0; c < channels; c++) {
                const ivec one = *(const loose_ivec *)(here + c * pitch);
                for (int d = 0; d < side; d++)
                    sums[d] += pair_products(one, *(const loose_ivec *)(there + c * wide + d));
            }
            const ivec square = *(const loose_ivec *)((const int32_t *)fixed->squares + own * pitch + i);
            const int32_t *squares = (const int32_t *)moving->squares + other * wide + i;
            for (int d = 0; d < side; d++)
                found[d] = __builtin_convertvector(square + *(const loose_ivec *)(squares + d) - 2 * sums[d], vec);
        } else {
            const float *here = (const float *)fixed->values + own * channels * pitch + i;
            const float *there = (const float *)moving->values + other * channels * wide + i;
            vec sums[MOST_SIDE];
            for (int d = 0; d < side; d++) sums[d] = all(0);
            for (int64_t c = 0; c < channels; c++) {
                const vec one = load(here + c * pitch);
                for (int d = 0; d < side; d++) sums[d] += one * load(there + c * wide + d);
            }
            const vec square = load((const float *)fixed->squares + own * pitch + i);
            const float *squares = (const float *)moving->squares + other * wide + i;
            for (int d = 0; d < side; d++) {
                const vec known = square + load(squares + d) - 2 * sums[d];
                /* Rounding can leave a tiny negative where both sides agree. */
                found[d] = (vec)((ivec)known & (known > 0));
            }
        }
        const vec w = load(here_weights + i);
        for (int d = 0; d < side; d++) {
            const vec both = w * load(there_weights + i + d);
            const int64_t at = d * (pitch + 2 * ENDS) + ENDS + i;
            store(weight + at, both);
            store(difference + at, found[d] * both);
        }
    }
}

/* The same for a side and a kind of values each: all that is compiled more than once. */
typedef void Differences(const Tile *, const Tile *, int64_t, int64_t, float *, float *);
#define OF(name, shorts, side)                                                                                        \
    static void name(const Tile *fixed, const Tile *moving, int64_t own, int64_t other, float *difference, float *weight) { \
        differences(shorts, side, fixed, moving, own, other, difference, weight);                                     \
    }
OF(floats_3, 0, 3) OF(floats_5, 0, 5) OF(floats_7, 0, 7) OF(floats_9, 0, 9)
OF(shorts_3, 1, 3) OF(shorts_5, 1, 5) OF(shorts_7, 1, 7) OF(shorts_9, 1, 9)
#undef OF

/* Sums over three cells of each row of (side, ENDS + pitch + ENDS), every second row of sums (2 side, pitch). */
static void sums_of_three(int side, const float *rows, int64_t pitch, float *sums) {
    for (int d = 0; d < side; d++)
        for (int64_t i = 0; i < pitch; i += WIDTH) {
            const float *at = rows + d * (pitch + 2 * ENDS) + ENDS + i;
            store(sums + 2 * d * pitch + i, load(at - 1) + load(at) + load(at + 1));
        }
}

/* A cost in 16 bits: in steps of 2^-14 up to nearly 4, where all costs are the same, and UNKNOWN. */
#define STEP (1.0f / 16384)
#define MOST 65534.0f
#define UNKNOWN 65535

/* Planes [first, last) of costs for boxes of 3^3 cells as in regkit.solver.costvolume.known_costs:
 * either `whole` (side^3, z, y, x), NaN where less than a quarter of the box has data, or `short_costs` (side^3, z, y,
 * radius + x + radius) in 16 bits, UNKNOWN there and in the margins; features are then taken in 16 bits, times
 * `scale`. Of their z planes they hold `planes` from `start` on. fixed (channels, z, y, x); moving the same with
 * radius cells more on every side; their weights without the channels. */
KERNEL(costs)(int64_t first, int64_t last, const float *fixed, const float *fixed_weight, const float *moving,
              const float *moving_weight, int64_t channels, int64_t z, int64_t y, int64_t x, int64_t radius,
              int64_t start, int64_t planes, double scale, float *whole, uint16_t *short_costs) {
    static Differences *const of_radius[2][4] = {{floats_3, floats_5, floats_7, floats_9},
                                                 {shorts_3, shorts_5, shorts_7, shorts_9}};
    const int shorts = short_costs != NULL, side = 2 * (int)radius + 1;
    Differences *const differences_of_row = of_radius[shorts][radius - 1];
    first += start;
    last += start;
    const int64_t margin = side / 2, wide_z = z + side - 1, wide_y = y + side - 1, wide_x = x + side - 1;
    const int64_t pitch = (x + WIDTH - 1) / WIDTH * WIDTH, wide = pitch + ENDS, padded = pitch + 2 * ENDS;
    const int64_t tile = y < TILE ? y : TILE, rows = tile + 2, block = tile * pitch, plane = 2 * side * side * block;
    const int64_t kept = shorts ? (channels + 1) / 2 : channels, deep = last - first + 2;
    const int64_t here_rows = deep * rows, there_rows = (deep + side - 1) * (rows + side - 1);
    const int64_t sizes[] = {here_rows * (kept + 2) * pitch, there_rows * (kept + 2) * wide, 2 * side * padded,
                             6 * side * pitch, 3 * plane};
    int64_t floats = 0;
    for (int k = 0; k < 5; k++) floats += sizes[k];
    float *scratch = calloc(floats, sizeof(float));
    if (!scratch) return NO_MEMORY;
    float *values = scratch, *difference = values + sizes[0] + sizes[1], *weight = difference + side * padded;
    float *boxed = difference + sizes[2], *ring = boxed + sizes[3];
    Tile here = {first - 1, 0, 0, kept, pitch, values, values + here_rows * kept * pitch, 0};
    here.weights = (float *)here.squares + here_rows * pitch;
    Tile there = {first - 1, 0, 0, kept, wide, values + sizes[0], 0, 0};
    there.squares = (float *)there.values + there_rows * kept * wide;
    there.weights = (float *)there.squares + there_rows * wide;
    const float mean = (float)(1 / (channels * (shorts ? scale * scale : 1))), least = 0.25f * 27;
    for (int64_t top = 0; top < y; top += TILE) {
        const int64_t end = top + TILE < y ? top + TILE : y;
        const int64_t low = top > 0 ? top - 1 : 0, high = end < y ? end + 1 : y;
        here.low = there.low = low;
        here.rows = high - low;
        there.rows = here.rows + side - 1;
        fill(shorts, &here, last + 1, fixed, fixed_weight, channels, z, y, x, (float)scale);
        fill(shorts, &there, last + side, moving, moving_weight, channels, wide_z, wide_y, wide_x, (float)scale);
        for (int dz = 0; dz < side; dz++)
            for (int64_t k = first - 1; k <= last; k++) {
                /* The sums over boxes of 3 x 3 in the plane k, for the three planes that a box spans. */
                float *sums = ring + (k + 3) % 3 * plane;
                if (k < 0 || k >= z) memset(sums, 0, plane * sizeof(float));
                for (int dy = 0; dy < side && k >= 0 && k < z; dy++)
                    for (int64_t j = top - 1; j <= end; j++) {
                        float *row = boxed + (j + 3) % 3 * (2 * side * pitch);
                        if (j < 0 || j >= y) {
                            memset(row, 0, 2 * side * pitch * sizeof(float));
                        } else {
                            differences_of_row(&here, &there, tile_row(&here, k, j),
                                               tile_row(&there, k + dz, j + dy), difference, weight);
                            sums_of_three(side, difference, pitch, row);
                            sums_of_three(side, weight, pitch, row + pitch);
                        }
                        if (j <= top) continue;
                        const float *a = boxed, *b = a + 2 * side * pitch, *c = b + 2 * side * pitch;
                        float *sum = sums + dy * 2 * side * block + (j - 1 - top) * pitch;
                        for (int q = 0; q < 2 * side; q++)
                            for (int64_t i = 0; i < pitch; i += WIDTH) {
                                const int64_t at = q * pitch + i;
                                store(sum + q * block + i, load(a + at) + load(b + at) + load(c + at));
                            }
                    }
                if (k <= first) continue;
                for (int dy = 0; dy < side; dy++)
                    for (int dx = 0; dx < side; dx++) {
                        const float *a = ring + (dy * side + dx) * 2 * block, *b = a + plane, *c = b + plane;
                        const int64_t row = (((dz * side + dy) * side + dx) * planes + k - 1 - start) * y + top;
                        for (int64_t j = 0; j < end - top; j++) {
                            const float *p = a + j * pitch, *q = b + j * pitch, *r = c + j * pitch;
                            if (whole) {
                                float *cost = whole + (row + j) * x;
                                INDEPENDENT
                                for (int64_t i = 0; i < x; i++) {
                                    const float w = p[block + i] + q[block + i] + r[block + i];
                                    const float found = (p[i] + q[i] + r[i]) * mean / w;
                                    cost[i] = w > least ? found : NAN;
                                }
                                continue;
                            }
                            uint16_t *cost = short_costs + (row + j) * (x + 2 * margin) + margin;
                            INDEPENDENT
                            for (int64_t i = 0; i < x; i++) {
                                const float w = p[block + i] + q[block + i] + r[block + i];
                                const float found = (p[i] + q[i] + r[i]) * (mean / STEP) / w + 0.5f;
                                const int32_t steps = (int32_t)(found < MOST ? found : MOST);
                                cost[i] = (uint16_t)(w > least ? steps : UNKNOWN);
                            }
                            for (int64_t i = 0; i < margin; i++) cost[i - margin] = cost[x + i] = UNKNOWN;
                        }
                    }
            }
    }
    free(scratch);
    return 0;
}

/* Of the costs (side^3, cells) of blocks [first, last) of BLOCK cells, NaN where they are not known: how far the
 * least is below the mean of a cell's, 0 if it has none, and step (3, cells), the displacement that it is of, off
 * the border of the cube with the fraction of a cell where a parabola through its neighbours is lowest. One that
 * is not known counts as the mean. */
KERNEL(best_steps)(int64_t first, int64_t last, const float *costs, int64_t side, int64_t cells, float *gain,
                   float *step) {
    float sum[BLOCK], count[BLOCK], least[BLOCK];
    int32_t chosen[BLOCK];
    for (int64_t b = first; b < last; b++) {
        const int64_t start = b * BLOCK, n = cells - start < BLOCK ? cells - start : BLOCK;
        for (int64_t i = 0; i < n; i++) {
            sum[i] = count[i] = chosen[i] = 0;
            least[i] = INFINITY;
        }
        for (int64_t k = 0; k < side * side * side; k++) {
            const float *cost = costs + k * cells + start;
            INDEPENDENT
            for (int64_t i = 0; i < n; i++) {
                const int known = cost[i] == cost[i], better = cost[i] < least[i];
                sum[i] += known ? cost[i] : 0;
                count[i] += known ? 1 : 0;
                least[i] = better ? cost[i] : least[i];
                chosen[i] = better ? (int32_t)k : chosen[i];
            }
        }
        for (int64_t i = 0; i < n; i++) {
            const float mean = sum[i] / (count[i] > 1 ? count[i] : 1), lowest = count[i] > 0 ? least[i] : 0;
            gain[start + i] = mean - lowest;
            int64_t stride = 1;
            for (int axis = 0; axis < 3; axis++, stride *= side) {
                const int64_t at = chosen[i] / stride % side;
                float fraction = 0;
                if (at > 0 && at + 1 < side) {
                    const float *here = costs + chosen[i] * cells + start + i;
                    const float low = here[-stride * cells], high = here[stride * cells];
                    const float below = low == low ? low : mean, above = high == high ? high : mean;
                    const float bend = below + above - 2 * lowest;
                    fraction = 0.5f * (below - above) / (bend > 1e-9f ? bend : 1e-9f);
                    fraction = fraction > 0.5f ? 0.5f : fraction < -0.5f ? -0.5f : fraction;
                }
                step[axis * cells + start + i] = at - side / 2 + fraction;
            }
        }
    }
    return 0;
}

/* Costs (side^3, z, y, radius + x + radius) in 16 bits, and which way they are read. The way there takes those of a
 * displacement at its cell. The way back, from the other image, takes those of the opposite displacement at the
 * cell that it leads to. */
typedef struct {
    const uint16_t *costs;
    int64_t z, y, x;
    int back;
} Costs;

/* The cost of the row j of the plane k for dz, dy and the least displacement along x, and the step to the next one.
 * NULL beyond the ends. */
INLINE const uint16_t *cost_row(const Costs *c, int side, int64_t k, int64_t j, int dz, int dy, int64_t *step) {
    const int64_t r = side / 2, pitch = c->x + 2 * r, volume = c->z * c->y * pitch;
    const int64_t number = ((dz + r) * side + dy + r) * side;
    if (!c->back) {
        *step = volume;
        return c->costs + number * volume + (k * c->y + j) * pitch + r;
    }
    const int64_t to_z = k + dz, to_y = j + dy;
    *step = 1 - volume;
    if (to_z < 0 || to_z >= c->z || to_y < 0 || to_y >= c->y) return NULL;
    return c->costs + ((int64_t)side * side * side - 1 - number) * volume + (to_z * c->y + to_y) * pitch;
}

/* Rows of y that all displacements are tried on at once, fewer if they are long. */
#define BLOCK_ROWS 16
#define BLOCK_CELLS 8192

INLINE int64_t rows_at_once(int64_t x) {
    const int64_t fitting = BLOCK_CELLS / x;
    return fitting < 1 ? 1 : fitting < BLOCK_ROWS ? fitting : BLOCK_ROWS;
}

INLINE void neutral_planes(const int side, int64_t first, int64_t last, const Costs *c, float *neutral, int32_t *sum,
                           int32_t *count) {
    const int r = side / 2;
    const int64_t x = c->x, y = c->y, most = rows_at_once(x);
    for (int64_t k = first; k < last; k++)
        for (int64_t top = 0; top < y; top += most) {
            const int64_t rows = top + most < y ? most : y - top;
            memset(sum, 0, most * x * sizeof(int32_t));
            memset(count, 0, most * x * sizeof(int32_t));
            for (int dz = -r; dz <= r; dz++)
                for (int dy = -r; dy <= r; dy++)
                    for (int64_t j = 0; j < rows; j++) {
                        int64_t step;
                        const uint16_t *row = cost_row(c, side, k, top + j, dz, dy, &step);
                        if (!row) continue;
                        INDEPENDENT
                        for (int64_t i = 0; i < x; i++)
                            for (int d = 0; d < side; d++) {
                                const int32_t cost = row[d * step + i], known = cost != UNKNOWN;
                                sum[j * x + i] += known ? cost : 0; /* at most 729 of 2^16 */
                                count[j * x + i] += known;
                            }
                    }
            float *mean = neutral + (k * y + top) * x;
            for (int64_t i = 0; i < rows * x; i++)
                mean[i] = STEP * (float)sum[i] / (float)(count[i] > 1 ? count[i] : 1);
        }
}

/* Planes [first, last) of neutral (z, y, x): the mean of a cell's costs that are known, 0 if none is. Costs that are
 * not known count as this. */
KERNEL(neutral)(int64_t first, int64_t last, const uint16_t *costs, int64_t z, int64_t y, int64_t x, int64_t radius,
                int64_t back, float *neutral) {
    const Costs c = {costs, z, y, x, (int)back};
    const int64_t cells = rows_at_once(x) * x;
    int32_t *sum = malloc(2 * cells * sizeof(int32_t)), *count = sum + cells;
    if (!sum) return NO_MEMORY;
    switch (radius) {
    case 1: neutral_planes(3, first, last, &c, neutral, sum, count); break;
    case 2: neutral_planes(5, first, last, &c, neutral, sum, count); break;
    case 3: neutral_planes(7, first, last, &c, neutral, sum, count); break;
    default: neutral_planes(9, first, last, &c, neutral, sum, count); break;
    }
    free(sum);
    return 0;
}

/* Which of `side` displacements along x beats the best so far, for WIDTH cells. */
INLINE void challenge(const int side, const uint16_t *costs, int64_t step, vec neutral, vec ux, vec part, float theta,
                      int32_t k, float *best_at, int32_t *which_at) {
    const int r = side / 2;
    vec best = load(best_at);
    ivec which = *(const loose_ivec *)which_at;
    for (int d = 0; d < side; d++) {
        const float dx = (float)(d - r);
        vec cost = neutral;
        if (costs) {
            const ivec steps = widen_unsigned(costs + d * step);
            const ivec unknown = steps == UNKNOWN;
            cost = (vec)(((ivec)neutral & unknown) | ((ivec)(STEP * __builtin_convertvector(steps, vec)) & ~unknown));
        }
        const vec sum = cost + (part + (theta * dx * dx - 2 * theta * dx * ux));
        const ivec better = sum < best;
        best = (vec)(((ivec)sum & better) | ((ivec)best & ~better));
        which = ((k + d) & better) | (which & ~better);
    }
    store(best_at, best);
    *(loose_ivec *)which_at = which;
}

INLINE int near(float value, int r) {
    const int whole = (int)floorf(value + 0.5f);
    return whole < -r ? -r : whole > r ? r : whole;
}

/* The displacement of a number and, off the border of the cube along each axis, the fraction of a cell where a
 * parabola through the costs and penalties of its neighbours is lowest. Their costs lie at fixed steps from its own. */
INLINE void place(const int side, const Costs *c, int64_t k, int64_t j, int64_t i, int32_t number, float neutral,
                  float theta, const float *field, int64_t cells, float *chosen) {
    const int r = side / 2, d[3] = {number % side - r, number / side % side - r, number / (side * side) - r};
    const int64_t pitch = c->x + 2 * r, volume = c->z * c->y * pitch;
    const int64_t to_y = j + d[1], to_z = k + d[2], way = c->back ? -volume : volume;
    const int64_t step[3] = {way + (c->back ? 1 : 0), side * way + (c->back ? pitch : 0),
                             side * side * way + (c->back ? c->y * pitch : 0)};
    const int64_t at = c->back ? (side * side * side - 1 - number) * volume + (to_z * c->y + to_y) * pitch + i + d[0] + r
                               : number * volume + (k * c->y + j) * pitch + r + i;
    /* On the way back there are no costs beyond the ends: along y and z, whether this one and its neighbours lie in. */
    int in[3][3];
    for (int n = 0; n < 3; n++) {
        in[0][n] = 1;
        in[1][n] = !c->back || (to_y + n - 1 >= 0 && to_y + n - 1 < c->y);
        in[2][n] = !c->back || (to_z + n - 1 >= 0 && to_z + n - 1 < c->z);
    }
    const int32_t own = in[1][1] && in[2][1] ? c->costs[at] : UNKNOWN;
    const float here = own == UNKNOWN ? neutral : STEP * (float)own;
    for (int axis = 0; axis < 3; axis++) {
        float fraction = 0;
        if (d[axis] > -r && d[axis] < r) {
            const int others = (axis == 1 || in[1][1]) && (axis == 2 || in[2][1]);
            const int32_t before = others && in[axis][0] ? c->costs[at - step[axis]] : UNKNOWN;
            const int32_t after = others && in[axis][2] ? c->costs[at + step[axis]] : UNKNOWN;
            const float below = before == UNKNOWN ? neutral : STEP * (float)before;
            const float above = after == UNKNOWN ? neutral : STEP * (float)after;
            const float slope = below - above + 4 * theta * (field[axis * cells] - (float)d[axis]);
            const float bend = below + above - 2 * here + 2 * theta;
            fraction = 0.5f * slope / (bend > 1e-9f ? bend : 1e-9f);
            fraction = fraction > 0.5f ? 0.5f : fraction < -0.5f ? -0.5f : fraction;
        }
        chosen[axis * cells] = (float)d[axis] + fraction;
    }
}

INLINE void choose_planes(const int side, int64_t first, int64_t last, const Costs *c, const float *neutral, float theta,
                          const float *field, float *chosen, float *best, int32_t *which) {
    const int r = side / 2;
    const float slack = 1e-4f * theta + 1e-30f; /* more than what penalties are rounded by, and never 0 */
    const int64_t x = c->x, y = c->y, cells = c->z * y * x, most = rows_at_once(x);
    for (int64_t k = first; k < last; k++)
        for (int64_t top = 0; top < y; top += most) {
            const int64_t rows = top + most < y ? most : y - top, start = (k * y + top) * x;
            /* The displacements nearest to the field along z and y show how good the best is at least: the others
             * of a row are passed over where even a cost of 0 would be worse. */
            for (int64_t j = 0; j < rows; j++)
                for (int64_t i = 0;;) {
                    const float *ux = field + start + j * x + i, *uy = ux + cells, *uz = uy + cells;
                    const int dz = near(*uz, r), dy = near(*uy, r);
                    int64_t step;
                    const uint16_t *row = cost_row(c, side, k, top + j, dz, dy, &step);
                    store(best + j * x + i, all(INFINITY));
                    challenge(side, row ? row + i : NULL, step, load(neutral + start + j * x + i), load(ux),
                              theta * (dz * dz + dy * dy) - 2 * theta * dy * load(uy) - 2 * theta * dz * load(uz),
                              theta, 0, best + j * x + i, which + j * x + i);
                    if (i + WIDTH >= x) break;
                    i = next_vector(i, x);
                }
            /* Found again in their turn, so that the first of equals wins. */
            for (int64_t i = 0; i < rows * x; i++) best[i] += slack + 1e-6f * fabsf(best[i]);
            for (int dz = -r; dz <= r; dz++)
                for (int dy = -r; dy <= r; dy++) {
                    const int32_t number = ((dz + r) * side + dy + r) * side;
                    /* |u|^2 is the same for every displacement, so it is left out. */
                    const float square = theta * (dz * dz + dy * dy);
                    const float along_y = -2 * theta * dy, along_z = -2 * theta * dz;
                    for (int64_t j = 0; j < rows; j++) {
                        int64_t step;
                        const uint16_t *row = cost_row(c, side, k, top + j, dz, dy, &step);
                        const float *ux = field + start + j * x, *uy = ux + cells, *uz = uy + cells;
                        for (int64_t i = 0;;) {
                            const vec u = load(ux + i), part = square + along_y * load(uy + i) + along_z * load(uz + i);
                            if (any(part - theta * u * u <= load(best + j * x + i) + slack))
                                challenge(side, row ? row + i : NULL, step, load(neutral + start + j * x + i), u, part,
                                          theta, number, best + j * x + i, which + j * x + i);
                            if (i + WIDTH >= x) break;
                            i = next_vector(i, x);  /* what is done twice comes to the same */
                        }
                    }
                }
            for (int64_t j = 0; j < rows; j++)
                for (int64_t i = 0; i < x; i++) {
                    const int64_t n = j * x + i, cell = start + n;
                    place(side, c, k, top + j, i, which[n], neutral[cell], theta, field + cell, cells, chosen + cell);
                }
        }
}

/* Planes [first, last) of chosen (3, z, y, x): the displacement d, components (x, y, z), that minimises cost +
 * theta |d - field|^2, the first of equals, and the fraction of a cell beside it. Rows have at least 16 cells. */
KERNEL(choose)(int64_t first, int64_t last, const uint16_t *costs, int64_t z, int64_t y, int64_t x, int64_t radius,
               int64_t back, const float *neutral, double theta, const float *field, float *chosen) {
    const Costs c = {costs, z, y, x, (int)back};
    const int64_t cells = rows_at_once(x) * x;
    float *best = malloc(cells * (sizeof(float) + sizeof(int32_t)));
    if (!best) return NO_MEMORY;
    int32_t *which = (int32_t *)(best + cells);
    switch (radius) {
    case 1: choose_planes(3, first, last, &c, neutral, (float)theta, field, chosen, best, which); break;
    case 2: choose_planes(5, first, last, &c, neutral, (float)theta, field, chosen, best, which); break;
    case 3: choose_planes(7, first, last, &c, neutral, (float)theta, field, chosen, best, which); break;
    default: choose_planes(9, first, last, &c, neutral, (float)theta, field, chosen, best, which); break;
    }
    free(best);
    return 0;
}
