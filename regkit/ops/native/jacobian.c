/* Jacobian determinants of a dense displacement field.
 *
 *              y0                field (z, y, x, 3): the three components of a voxel side by side
 *              |
 *       x0 -- here -- x1         a = (x1 - x0) / 2, b = (y1 - y0) / 2, c = (z1 - z0) / 2, one-sided at the ends;
 *              |                 with the columns of the grid's matrix added, a . (b x c) / volume
 *              y1      z0, z1: the planes before and behind
 */

/* Planes [first, last) of det(matrix + G) / volume, with G the derivatives of field (z, y, x, 3) along the index
 * axes: central differences, one-sided ones at the ends, 0 along an axis of one voxel. matrix (3, 3). */
KERNEL(jacobian)(int64_t first, int64_t last, const float *field, int64_t z, int64_t y, int64_t x,
                 const double *matrix, double volume, float *determinant) {
    const int64_t row = 3 * x, plane = y * row;
    const double scale = 1 / volume;
    for (int64_t k = first; k < last; k++)
        for (int64_t j = 0; j < y; j++) {
            const int64_t at = k * plane + j * row;
            const float *y0 = field + at - (j > 0 ? row : 0), *y1 = field + at + (j + 1 < y ? row : 0);
            const float *z0 = field + at - (k > 0 ? plane : 0), *z1 = field + at + (k + 1 < z ? plane : 0);
            const double ys = j > 0 && j + 1 < y ? 0.5 : 1, zs = k > 0 && k + 1 < z ? 0.5 : 1;
            float *to = determinant + (k * y + j) * x;
            for (int64_t i = 0; i < x; i++) {
                const float *x0 = field + at + 3 * (i > 0 ? i - 1 : 0), *x1 = field + at + 3 * (i + 1 < x ? i + 1 : i);
                const double xs = i > 0 && i + 1 < x ? 0.5 : 1;
                double a[3], b[3], c[3];
                for (int m = 0; m < 3; m++) {
                    a[m] = matrix[3 * m] + xs * ((double)x1[m] - x0[m]);
                    b[m] = matrix[3 * m + 1] + ys * ((double)y1[3 * i + m] - y0[3 * i + m]);
                    c[m] = matrix[3 * m + 2] + zs * ((double)z1[3 * i + m] - z0[3 * i + m]);
                }
                to[i] = (float)(scale * (a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) +
                                         a[2] * (b[0] * c[1] - b[1] * c[0])));
            }
        }
    return 0;
}
