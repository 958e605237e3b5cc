/* Ranks for intensities: what the network sees.
 *
 *     rank                     knots: 65 quantiles, a step of rank each
 *       1 |                 ----
 *         |             ___/       a value  -->  part_of[its narrow cell]  -->  knot below  -->  share of the way
 *         |      ______/                                                        to the next one
 *       0 |-----/
 *         +-------------------- intensity, cut in `parts` narrow cells of one width
 */
/* Blocks [first, last) of BLOCK values in [0, 1]: margin + step * (k + t) for a value that lies the share t from the
 * knot k to the next one; 0 and 1 from `low` down and from `high` up. part_of (parts + 1) is the knot below each part
 * of [0, 1], in none of which another knot follows more than one. */
KERNEL(equalise)(int64_t first, int64_t last, const float *values, int64_t count, const float *knots,
                 int64_t last_knot, const int32_t *part_of, int64_t parts, double low, double high, double margin,
                 double step, float *ranks) {
    const float below = (float)low, above = (float)high, start = (float)margin, slope = (float)step;
    const int64_t end = last * BLOCK < count ? last * BLOCK : count;
    for (int64_t i = first * BLOCK; i < end; i++) {
        const float value = values[i];
        int32_t part = (int32_t)(value * (float)parts);
        part = part < 0 ? 0 : part > (int32_t)parts ? (int32_t)parts : part;
        int32_t knot = part_of[part];
        /* From the last but one on no other follows. */
        knot += knot + 1 < last_knot && value > knots[knot + 1];
        float share = (value - knots[knot]) / (knots[knot + 1] - knots[knot]);
        share = share > 0 ? share < 1 ? share : 1 : 0;
        const float rank = start + slope * ((float)knot + share);
        ranks[i] = value <= below ? 0 : value >= above ? 1 : rank;
    }
    return 0;
}
