/* One step of Adam (Kingma and Ba, ICLR 2015), in place.
 *
 *     parameters  |----------|----------|----------|---|     blocks of BLOCK values
 *     gradient    |----------|----------|----------|---|     read
 *     mean        |----------|----------|----------|---|     all of one index together, whatever the shape
 *     squares     |----------|----------|----------|---|
 *                             first      last
 */

/* Parameters [first, last), in blocks of BLOCK of `count`: step is the learning rate over the mean's correction,
 * spread the root of the correction of the squares' mean. */
KERNEL(adam)(int64_t first, int64_t last, int64_t count, float *parameters, const float *gradient, float *mean,
             float *squares, double beta1, double beta2, double step, double spread, double floor) {
    const float b1 = (float)beta1, b2 = (float)beta2, s = (float)step, c = (float)(1 / spread), f = (float)floor;
    const int64_t start = first * BLOCK, end = last * BLOCK < count ? last * BLOCK : count;
    for (int64_t i = start; i < end; i++) {
        const float g = gradient[i], m = b1 * mean[i] + (1 - b1) * g, v = b2 * squares[i] + (1 - b2) * g * g;
        mean[i] = m;
        squares[i] = v;
        parameters[i] -= s * m / (sqrtf(v) * c + f);
    }
    return 0;
}
