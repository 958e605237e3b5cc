/* Least trimmed squares of a linear map between points, in double: how far each point is off, and what the fit to those
 * that are kept needs to know.
 *
 *     points  1   |-- BLOCK --|-- BLOCK --|---|       a block at a time, of each its own sums: what comes out does not
 *             p   |-----------|-----------|---|  x 3  hang on how many threads there are
 *             t   |-----------|-----------|---|  x 3
 *     error       |-----------|-----------|---|       those of at most `most` are kept
 */

/* Blocks [first, last) of BLOCK points: error (count) = |matrix (1, p) - t|^2, matrix (3, 4). */
KERNEL(squared_errors)(int64_t first, int64_t last, const double *points, int64_t count, const double *matrix,
                       double *error) {
    const int64_t end = last * BLOCK < count ? last * BLOCK : count;
    INDEPENDENT
    for (int64_t i = first * BLOCK; i < end; i++) {
        double sum = 0;
        for (int axis = 0; axis < 3; axis++) {
            const double *row = matrix + 4 * axis;
            const double off = row[0] + row[1] * points[count + i] + row[2] * points[2 * count + i] +
                               row[3] * points[3 * count + i] - points[(4 + axis) * count + i];
            sum += off * off;
        }
        error[i] = sum;
    }
    return 0;
}

/* Of each of the blocks [first, last): sums (any, 7, 4) of (1, p, t)^T (1, p) over the points with an error of at most
 * `most`. */
KERNEL(kept_sums)(int64_t first, int64_t last, const double *points, int64_t count, const double *error, double most,
                  double *sums) {
    for (int64_t block = first; block < last; block++) {
        const int64_t start = block * BLOCK, end = start + BLOCK < count ? start + BLOCK : count;
        for (int a = 0; a < 7; a++) {
            const double *one = points + a * count;
            double s0 = 0, s1 = 0, s2 = 0, s3 = 0;
            for (int64_t i = start; i < end; i++) {
                const double value = error[i] <= most ? one[i] : 0;
                s0 += value;
                s1 += value * points[count + i];
                s2 += value * points[2 * count + i];
                s3 += value * points[3 * count + i];
            }
            double *to = sums + (block * 7 + a) * 4;
            to[0] = s0;
            to[1] = s1;
            to[2] = s2;
            to[3] = s3;
        }
    }
    return 0;
}
