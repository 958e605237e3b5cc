/* Regularisation of the fine stage: diffusion, and a barrier against small Jacobian determinants.
 *
 *     .-----.-----.        field (3, z, y, x) on a lattice. Along each edge: stiffness times (forward difference)^2.
 *     |     |     |        In each cell, at one corner of its eight: J of the three edges that meet there.
 *     .--->-*-----.
 *     |  ex |ey   |        * the corner (cy, cx) = (0, 1) of the cell to its lower left: ex begins one to the left of
 *     |     v     |          it, ey at it. J below `least_jacobian` costs.
 *     .-----.-----.
 *
 * A call writes the gradient of its own planes alone, so that threads need not wait for each other; the cells
 * between two ranges are done by both. */
/* Determinant of x + field(x) where the edges that begin at ex, ey and ez along the axes meet. */
INLINE float determinant(const float *field, int64_t component, int64_t ex, int64_t ey, int64_t ez, int64_t x,
                         int64_t plane) {
    const float *fx = field, *fy = field + component, *fz = field + 2 * component;
    const float xx = fx[ex + 1] - fx[ex] + 1, yx = fy[ex + 1] - fy[ex], zx = fz[ex + 1] - fz[ex];
    const float xy = fx[ey + x] - fx[ey], yy = fy[ey + x] - fy[ey] + 1, zy = fz[ey + x] - fz[ey];
    const float xz = fx[ez + plane] - fx[ez], yz = fy[ez + plane] - fy[ez], zz = fz[ez + plane] - fz[ez] + 1;
    return xx * (yy * zz - yz * zy) - xy * (yx * zz - yz * zx) + xz * (yx * zy - yy * zx);
}

/* Value and gradient for the planes [first, last) of z of a field (3, z, y, x) in cells:
 *
 *   sum over the axes of sum stiffness * (forward difference)^2 / (number of them)
 *   + barrier * sum over the cells of max(least_jacobian - J, 0)^2 / (number of them)
 *
 * with the stiffness (z, y, x) of a difference the mean of those of its two ends, and J the determinant of
 * x + field(x) at the corner of each cell of the lattice, as in regkit.ops.folding.corner_jacobian. */
KERNEL(penalty)(int64_t first, int64_t last, const float *field, int64_t z, int64_t y, int64_t x,
                const float *stiffness, double barrier, double least_jacobian, int64_t corner_z, int64_t corner_y,
                int64_t corner_x, float *gradient) {
    const int64_t plane = y * x, component = z * plane;
    const int64_t size[3] = {x, y, z}, stride[3] = {1, x, plane};
    double smoothness = 0, folding = 0;
    float factor[3];
    for (int axis = 0; axis < 3; axis++) {
        const double differences = 3.0 * (component / size[axis]) * (size[axis] - 1);
        factor[axis] = differences ? (float)(0.5 / differences) : 0;
    }
    for (int c = 0; c < 3; c++)
        for (int64_t k = first; k < last; k++)
            for (int64_t j = 0; j < y; j++) {
                const float *here = field + c * component + k * plane + j * x;
                float *out = gradient + c * component + k * plane + j * x;
                /* At an end of an axis the neighbour beyond it is the cell itself. */
                const float *y0 = here - (j > 0 ? x : 0), *y1 = here + (j + 1 < y ? x : 0);
                const float *z0 = here - (k > 0 ? plane : 0), *z1 = here + (k + 1 < z ? plane : 0);
                const float *w = stiffness + k * plane + j * x;
                const float *wy0 = w - (here - y0), *wy1 = w + (y1 - here);
                const float *wz0 = w - (here - z0), *wz1 = w + (z1 - here);
                /* Half of what is meant: the two ends of a difference are added up, not averaged. */
                const float fx = factor[0], fy = factor[1], fz = factor[2];
                float sum = 0;
                for (int64_t i = 0; i < x; i++) {
                    const float dy = y1[i] - here[i], dz = z1[i] - here[i];
                    const float ahead_y = fy * (w[i] + wy1[i]) * dy, ahead_z = fz * (w[i] + wz1[i]) * dz;
                    sum += ahead_y * dy + ahead_z * dz;
                    out[i] = 2 * (fy * (w[i] + wy0[i]) * (here[i] - y0[i]) - ahead_y +
                                  fz * (w[i] + wz0[i]) * (here[i] - z0[i]) - ahead_z);
                }
                for (int64_t i = 0; i + 1 < x; i++) {
                    const float dx = here[i + 1] - here[i];
                    sum += fx * (w[i] + w[i + 1]) * dx * dx;
                }
                for (int64_t i = 1; i < x; i++) out[i] += 2 * fx * (w[i - 1] + w[i]) * (here[i] - here[i - 1]);
                for (int64_t i = 0; i + 1 < x; i++) out[i] -= 2 * fx * (w[i] + w[i + 1]) * (here[i + 1] - here[i]);
                smoothness += sum;
            }
    if (!(barrier > 0) || z < 2 || y < 2 || x < 2) return smoothness;

    const double cells = (double)(z - 1) * (y - 1) * (x - 1);
    const int64_t side[3] = {corner_x, corner_y, corner_z};
    float *short_of = malloc(x * sizeof(float));
    if (!short_of) return NO_MEMORY;
    for (int64_t k = first > 0 ? first - 1 : 0; k < last && k + 1 < z; k++)
        for (int64_t j = 0; j + 1 < y; j++) {
            /* edge[a]: where the edge along axis a that meets the corner begins, for the cell (k, j, 0). */
            int64_t edge[3];
            const int64_t origin = k * plane + j * x;
            for (int a = 0; a < 3; a++) {
                edge[a] = origin;
                for (int b = 0; b < 3; b++)
                    if (b != a) edge[a] += side[b] * stride[b];
            }
            const int64_t ex = edge[0], ey = edge[1], ez = edge[2];
            int32_t some = 0;
            INDEPENDENT
            for (int64_t i = 0; i + 1 < x; i++) {
                short_of[i] = (float)least_jacobian - determinant(field, component, ex + i, ey + i, ez + i, x, plane);
                some |= short_of[i] > 0;
            }
            if (!some) continue;
            for (int64_t i = 0; i + 1 < x; i++) {
                if (!(short_of[i] > 0)) continue;
                if (k >= first) folding += (double)short_of[i] * short_of[i];
                double m[3][3], cofactor[3][3]; /* [component][axis] */
                for (int c = 0; c < 3; c++)
                    for (int a = 0; a < 3; a++) {
                        const float *at = field + c * component + edge[a] + i;
                        m[c][a] = at[stride[a]] - at[0] + (c == a);
                    }
                for (int c = 0; c < 3; c++)
                    for (int a = 0; a < 3; a++) {
                        const int c1 = (c + 1) % 3, c2 = (c + 2) % 3, a1 = (a + 1) % 3, a2 = (a + 2) % 3;
                        cofactor[c][a] = m[c1][a1] * m[c2][a2] - m[c1][a2] * m[c2][a1];
                    }
                const double slope = -2 * barrier / cells * short_of[i];
                for (int a = 0; a < 3; a++) {
                    const int64_t low_z = k + (a == 2 ? 0 : corner_z), high_z = low_z + (a == 2);
                    for (int c = 0; c < 3; c++) {
                        float *at = gradient + c * component + edge[a] + i;
                        const float share = (float)(slope * cofactor[c][a]);
                        if (high_z >= first && high_z < last) at[stride[a]] += share;
                        if (low_z >= first && low_z < last) at[0] -= share;
                    }
                }
            }
        }
    free(short_of);
    return smoothness + barrier / cells * folding;
}

/* How many determinants of x + field(x), for a field (3, z, y, x) in cells, are not positive, of those at the eight
 * corners of the cells of the planes [first, last) of z. */
KERNEL(folds)(int64_t first, int64_t last, const float *field, int64_t z, int64_t y, int64_t x) {
    const int64_t plane = y * x, component = z * plane;
    int64_t folds = 0;
    for (int64_t k = first; k < last; k++)
        for (int64_t j = 0; j + 1 < y; j++)
            for (int corner = 0; corner < 8; corner++) {
                const int64_t cx = corner & 1, cy = (corner >> 1 & 1) * x, cz = (corner >> 2) * plane;
                const int64_t origin = k * plane + j * x, ex = origin + cy + cz, ey = origin + cx + cz;
                const int64_t ez = origin + cx + cy;
                int32_t found = 0;
                for (int64_t i = 0; i + 1 < x; i++) {
                    found += !(determinant(field, component, ex + i, ey + i, ez + i, x, plane) > 0);
                }
                folds += found;
            }
    return (double)folds;
}
