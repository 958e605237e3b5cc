/* The data term of the fine stage: what trilinear sampling of the moving features costs, and its gradient.
 *
 * The cells of the fixed map fall in 2^3 groups by the parity of their index, their corner; a call does one group
 * or two, and a range of the planes that these have:
 *
 *     fixed, a plane      cell: lanes of 16 bits side by side      moving, around the place of a cell
 *     0 1 0 1 0 1         [1  | c0 | c1 | ... | 0 0 0]
 *     2 3 2 3 2 3                                                  v00 ------- s00 ----- v00 + s00
 *     0 1 0 1 0 1         moving: the weight w, then w times       |   tx   (place)
 *     2 3 2 3 2 3         the channels                             v01 ------- s01 ----- v01 + s01
 *
 * All lanes of the eight corners are read once. */

/* Cells between what is worked on and what is fetched from memory. */
#define AHEAD 16
/* Cells whose lanes stay in the cache while channels are read one by one. */
#define FEW 16
#define MOST_LANES (4 * LANES)
#define MOST_VECTORS (MOST_LANES / WIDTH)

typedef struct {
    const int16_t *moving, *fixed;
    const float *weight;
    int64_t z_moving, y_moving, x_moving, x, plane_step, row_step, step;
    int64_t component, places_plane, places_row, places_step;
    float moving_unit, fixed_unit, scale;
    const float *places;
    float *gradient;
} Difference;

/* Sum over a row of scale w_F w |v / w - F|^2 / 2. The eight corners are read once: value and derivatives of
 * v come from one tree of linear interpolations, and only they meet the residual. */
INLINE double difference_row(const int lanes, const Difference *d, int64_t z, int64_t y) {
    const int vectors = lanes / WIDTH;
    const int64_t at_row = z * d->places_plane + y * d->places_row;
    const int64_t row = d->x_moving * lanes, plane = d->y_moving * row;
    int16_t patch[8 * MOST_LANES] __attribute__((aligned(64)));
    double sum = 0;
    for (int64_t x = 0; x < d->x; x++) {
        float *gradient = d->gradient + at_row + x * d->places_step;
        gradient[0] = gradient[d->component] = gradient[2 * d->component] = 0;
        const int64_t cell = z * d->plane_step + y * d->row_step + x * d->step;
        const float factor = d->scale * d->weight[cell];
        if (!(factor > 0)) continue;
        const float *place = d->places + at_row + x * d->places_step;
        const float px = place[0], py = place[d->component], pz = place[2 * d->component];
        if (!(px > -1 && py > -1 && pz > -1 && px < d->x_moving && py < d->y_moving && pz < d->z_moving)) continue;
        const float fx = floorf(px), fy = floorf(py), fz = floorf(pz);
        const int64_t ix = (int64_t)fx, iy = (int64_t)fy, iz = (int64_t)fz;
        const float tx = px - fx, ty = py - fy, tz = pz - fz;
        const int16_t *fixed = d->fixed + cell * lanes;
        const int16_t *corner = d->moving + iz * plane + iy * row + ix * lanes;
        int64_t down = row, back = plane;
        if (ix < 0 || iy < 0 || iz < 0 || ix + 1 >= d->x_moving || iy + 1 >= d->y_moving || iz + 1 >= d->z_moving) {
            /* Beyond the ends there is nothing. */
            for (int k = 0; k < 8; k++) {
                const int64_t cx = ix + (k & 1), cy = iy + (k >> 1 & 1), cz = iz + (k >> 2);
                if (cx < 0 || cy < 0 || cz < 0 || cx >= d->x_moving || cy >= d->y_moving || cz >= d->z_moving)
                    memset(patch + k * lanes, 0, lanes * sizeof(int16_t));
                else
                    memcpy(patch + k * lanes, d->moving + cz * plane + cy * row + cx * lanes, lanes * sizeof(int16_t));
            }
            corner = patch;
            down = 2 * lanes;
            back = 4 * lanes;
        } else
            for (int k = 0; k < lanes; k += 2 * LANES) {
                __builtin_prefetch(fixed + AHEAD * lanes + k);
                for (int64_t ahead = AHEAD; ahead < AHEAD + d->step; ahead++) {
                    __builtin_prefetch(corner + ahead * lanes + k);
                    __builtin_prefetch(corner + ahead * lanes + k + down);
                    __builtin_prefetch(corner + ahead * lanes + k + back);
                    __builtin_prefetch(corner + ahead * lanes + k + back + down);
                }
            }
        vec value[MOST_VECTORS], along_x[MOST_VECTORS], along_y[MOST_VECTORS], along_z[MOST_VECTORS];
        for (int v = 0; v < vectors; v++) {
            const int16_t *at = corner + v * WIDTH;
            const vec v00 = load_shorts(at), v01 = load_shorts(at + down);
            const vec v10 = load_shorts(at + back), v11 = load_shorts(at + back + down);
            const vec s00 = load_shorts(at + lanes) - v00, s01 = load_shorts(at + down + lanes) - v01;
            const vec s10 = load_shorts(at + back + lanes) - v10, s11 = load_shorts(at + back + down + lanes) - v11;
            const vec e00 = v00 + tx * s00, e10 = v10 + tx * s10;
            const vec y0 = v01 + tx * s01 - e00, y1 = v11 + tx * s11 - e10;
            const vec low = e00 + ty * y0, high = e10 + ty * y1;
            const vec x0 = s00 + ty * (s01 - s00), x1 = s10 + ty * (s11 - s10);
            along_z[v] = high - low;
            value[v] = low + tz * along_z[v];
            along_y[v] = y0 + tz * (y1 - y0);
            along_x[v] = x0 + tz * (x1 - x0);
        }
        const float w = d->moving_unit * value[0][0];
        if (!(w > 1e-6f)) continue;
        const float inverse = d->moving_unit / w;
        vec squares = all(0), seen_part = all(0), sx = all(0), sy = all(0), sz = all(0);
        for (int v = 0; v < vectors; v++) {
            const vec seen = value[v] * inverse, residual = seen - d->fixed_unit * load_shorts(fixed + v * WIDTH);
            squares += residual * residual;
            seen_part += residual * seen;
            sx += residual * along_x[v];
            sy += residual * along_y[v];
            sz += residual * along_z[v];
        }
        const vec4 sums = totals(seen_part, sx, sy, sz);
        sum += 0.5f * factor * w * total(squares);
        /* The weight stays a constant as a factor, but v / w moves with it. */
        const float slope = factor * d->moving_unit;
        gradient[0] = slope * (sums[1] - sums[0] * along_x[0][0]);
        gradient[d->component] = slope * (sums[2] - sums[0] * along_y[0][0]);
        gradient[2 * d->component] = slope * (sums[3] - sums[0] * along_z[0][0]);
    }
    return sum;
}

/* One group of cells of the arguments of difference(), below. */
INLINE Difference of_corner(Difference d, int64_t corner, int64_t y, int64_t x, int64_t lanes, int whole) {
    const int64_t first = ((corner >> 2) * y + (corner >> 1 & 1)) * x + (corner & 1);
    d.fixed += first * lanes;
    d.weight += first;
    d.places += whole ? first : 0;
    d.gradient += whole ? first : 0;
    return d;
}

/* Loss, and its gradient with respect to the places: of the planes [first, last) of those of two groups of cells,
 * `corner` and `other` (4 cz + 2 cy + cx each), or of one if they are the same.
 *
 * moving (moving_z, moving_y, moving_x, lanes): the weight, then features times weight, then zeros, all in
 * moving_unit. fixed (z, y, x, lanes): 1, then features, then zeros, in fixed_unit; weight (z, y, x). places, gradient
 * (3, z, y, x), or (3, z / 2, y / 2, x / 2) of the one group: where a fixed cell is seen, as an index (x, y, z) of the
 * moving cells, 0 beyond them. A weight below 1e-6 is none. The gradient of the other groups' cells is left alone. A
 * second group is done beside the first: it reads much of the same moving cells. */
KERNEL(difference)(int64_t first, int64_t last, const int16_t *moving, double moving_unit, int64_t moving_z,
                   int64_t moving_y, int64_t moving_x, const int16_t *fixed, double fixed_unit, const float *weight,
                   int64_t z, int64_t y, int64_t x, int64_t lanes, const float *places, int64_t places_z,
                   int64_t places_y, int64_t places_x, int64_t corner, int64_t other, double scale, float *gradient) {
    const int whole = places_z == z, apart = whole ? 2 : 1;
    const Difference all_cells = {
        .moving = moving, .fixed = fixed, .weight = weight, .z_moving = moving_z, .y_moving = moving_y,
        .x_moving = moving_x, .x = x / 2, .plane_step = 2 * y * x, .row_step = 2 * x, .step = 2,
        .component = places_z * places_y * places_x, .places_plane = apart * places_y * places_x,
        .places_row = apart * places_x, .places_step = apart, .moving_unit = (float)moving_unit,
        .fixed_unit = (float)fixed_unit, .scale = (float)scale, .places = places, .gradient = gradient};
    const Difference d[2] = {of_corner(all_cells, corner, y, x, lanes, whole),
                             of_corner(all_cells, other, y, x, lanes, whole)};
    const int groups = corner == other ? 1 : 2;
    double sum = 0;
    for (int64_t k = first; k < last; k++)
        for (int64_t j = 0; j < y / 2; j++)
            for (int s = 0; s < groups; s++) switch (lanes / LANES) {
                case 1: sum += difference_row(LANES, d + s, k, j); break;
                case 2: sum += difference_row(2 * LANES, d + s, k, j); break;
                case 3: sum += difference_row(3 * LANES, d + s, k, j); break;
                default: sum += difference_row(MOST_LANES, d + s, k, j); break;
                }
    return sum;
}

/* Cells of blocks [first, last) of BLOCK as lanes: their weight, or 1 if there is none; then values (channels,
 * cells) times that; then zeros; in whole units. */
KERNEL(lanes)(int64_t first, int64_t last, const float *values, const float *weight, int64_t channels, int64_t cells,
              double unit, int64_t lanes, int16_t *packed) {
    const float units = (float)(1 / unit);
    const int64_t start = first * BLOCK, end = last * BLOCK < cells ? last * BLOCK : cells;
    memset(packed + start * lanes, 0, (end - start) * lanes * sizeof(int16_t));
    for (int64_t block = start; block < end; block += FEW) {
        const int64_t stop = block + FEW < end ? block + FEW : end;
        for (int64_t c = 0; c <= channels; c++)
            for (int64_t i = block; i < stop; i++) {
                const float one = c > 0 ? values[(c - 1) * cells + i] : 1;
                const float value = units * (weight ? one * weight[i] : one);
                packed[i * lanes + c] = (int16_t)lrintf(value < 32767 ? value : 32767);
            }
    }
    return 0;
}
