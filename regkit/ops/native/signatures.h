/* By "python -m regkit.ops.native.header" from signatures.py: not to be edited. */
#define DIGEST "2705c09fb904688d"
#define KERNELS 30

/* Cells or values, and places, that kernels without an axis of their own count in. */
#define BLOCK 2048
#define POINTS 128

#if defined(KERNEL) /* in the file of an instruction set */
KERNEL(adam)(int64_t first, int64_t last, int64_t count, float *parameters, const float *gradient, float *mean,
             float *squares, double beta1, double beta2, double step, double spread, double floor);
KERNEL(best_steps)(int64_t first, int64_t last, const float *costs, int64_t side, int64_t cells, float *gain,
                   float *step);
KERNEL(blur_across)(int64_t first, int64_t last, const float *image, float *blurred, int64_t n, int64_t inner,
                    const float *taps, int64_t radius);
KERNEL(blur_rows)(int64_t first, int64_t last, const float *image, float *blurred, int64_t x, const float *taps,
                  int64_t radius);
KERNEL(choose)(int64_t first, int64_t last, const uint16_t *costs, int64_t z, int64_t y, int64_t x, int64_t radius,
               int64_t back, const float *neutral, double theta, const float *field, float *chosen);
#if defined(EIGHTBIT)
KERNEL(convolve_eightbit)(int64_t first, int64_t last, const uint8_t *near, int64_t near_channels,
                          const int8_t *near_weights, const float *near_scale, const uint8_t *below,
                          int64_t below_channels, const int8_t *below_weights, const float *below_scale, int64_t z,
                          int64_t y, int64_t x, int64_t outputs, float *convolved, float *statistics);
#endif
KERNEL(costs)(int64_t first, int64_t last, const float *fixed, const float *fixed_weight, const float *moving,
              const float *moving_weight, int64_t channels, int64_t z, int64_t y, int64_t x, int64_t radius,
              int64_t start, int64_t planes, double scale, float *whole, uint16_t *short_costs);
KERNEL(difference)(int64_t first, int64_t last, const int16_t *moving, double moving_unit, int64_t moving_z,
                   int64_t moving_y, int64_t moving_x, const int16_t *fixed, double fixed_unit, const float *weight,
                   int64_t z, int64_t y, int64_t x, int64_t lanes, const float *places, int64_t places_z,
                   int64_t places_y, int64_t places_x, int64_t corner, int64_t other, double scale, float *gradient);
KERNEL(displacement_field)(int64_t first, int64_t last, const float *displacement, int64_t cells_z, int64_t cells_y,
                           int64_t cells_x, const double *cells, const double *part, const double *whole, int64_t y,
                           int64_t x, float *field);
KERNEL(equalise)(int64_t first, int64_t last, const float *values, int64_t count, const float *knots,
                 int64_t last_knot, const int32_t *part_of, int64_t parts, double low, double high, double margin,
                 double step, float *ranks);
KERNEL(folds)(int64_t first, int64_t last, const float *field, int64_t z, int64_t y, int64_t x);
KERNEL(halfway)(int64_t first, int64_t last, const float *u, const float *v, int64_t z, int64_t y, int64_t x,
                float *halved);
KERNEL(jacobian)(int64_t first, int64_t last, const float *field, int64_t z, int64_t y, int64_t x,
                 const double *matrix, double volume, float *determinant);
KERNEL(lanes)(int64_t first, int64_t last, const float *values, const float *weight, int64_t channels, int64_t cells,
              double unit, int64_t lanes, int16_t *packed);
KERNEL(mind_channels)(int64_t first, int64_t last, const float *means, const int64_t *views, int64_t wide_y,
                      int64_t wide_x, int64_t z, int64_t y, int64_t x, int64_t stride, const float *weight,
                      double least_scale, double most_scale, float *channels);
KERNEL(mind_differences)(int64_t first, int64_t last, const float *padded, const int64_t *steps, int64_t margin,
                         int64_t z, int64_t y, int64_t x, float *means);
KERNEL(mind_scale)(int64_t first, int64_t last, const float *means, const int64_t *views, int64_t wide_y,
                   int64_t wide_x, int64_t z, int64_t y, int64_t x);
KERNEL(neutral)(int64_t first, int64_t last, const uint16_t *costs, int64_t z, int64_t y, int64_t x, int64_t radius,
                int64_t back, float *neutral);
KERNEL(penalty)(int64_t first, int64_t last, const float *field, int64_t z, int64_t y, int64_t x,
                const float *stiffness, double barrier, double least_jacobian, int64_t corner_z, int64_t corner_y,
                int64_t corner_x, float *gradient);
KERNEL(pool)(int64_t first, int64_t last, const float *volume, const float *weight, int64_t z, int64_t y, int64_t x,
             int64_t stride, float *means);
#if defined(EIGHTBIT)
KERNEL(pool_eightbit)(int64_t first, int64_t last, const uint8_t *cells, int64_t y, int64_t wide, int64_t channels,
                      uint8_t *largest_cells);
#endif
KERNEL(resample)(int64_t first, int64_t last, const float *image, int64_t z, int64_t y, int64_t x,
                 const double *matrix, int64_t to_y, int64_t to_x, float *resampled, float *inside);
KERNEL(sample)(int64_t first, int64_t last, const float *volume, int64_t channels, int64_t z, int64_t y, int64_t x,
               const float *places, int64_t count, int64_t zeros, float *sampled);
KERNEL(sample_known)(int64_t first, int64_t last, const float *volume, const float *weight, int64_t channels,
                     int64_t z, int64_t y, int64_t x, const float *places, int64_t count, double least_weight,
                     float *sampled, float *sampled_weight);
KERNEL(kept_sums)(int64_t first, int64_t last, const double *points, int64_t count, const double *error, double most,
                  double *sums);
KERNEL(smooth_columns)(int64_t first, int64_t last, float *volume, int64_t channels, int64_t z, int64_t y, int64_t x,
                       int64_t passes);
KERNEL(smooth_planes)(int64_t first, int64_t last, const float *volume, float *smoothed, int64_t y, int64_t x,
                      int64_t passes);
KERNEL(softmax_sums)(int64_t first, int64_t last, const uint16_t *scores, int64_t z_step, int64_t y_step, int64_t z,
                     int64_t y, int64_t x, int64_t channels, const int64_t *group, int64_t groups, double scale,
                     float *sums);
KERNEL(squared_errors)(int64_t first, int64_t last, const double *points, int64_t count, const double *matrix,
                       double *error);
#if defined(EIGHTBIT)
KERNEL(to_eightbit)(int64_t first, int64_t last, const float *values, const float *factor, const float *term,
                    int64_t x, int64_t channels, uint8_t *cells);
#endif

/* Each with its arguments from slots of 8 bytes. */
static double call_adam(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(adam)(first, last, a[0].i, a[1].p, a[2].p, a[3].p, a[4].p, a[5].d, a[6].d, a[7].d, a[8].d,
                              a[9].d);
}
static double call_best_steps(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(best_steps)(first, last, a[0].p, a[1].i, a[2].i, a[3].p, a[4].p);
}
static double call_blur_across(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(blur_across)(first, last, a[0].p, a[1].p, a[2].i, a[3].i, a[4].p, a[5].i);
}
static double call_blur_rows(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(blur_rows)(first, last, a[0].p, a[1].p, a[2].i, a[3].p, a[4].i);
}
static double call_choose(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(choose)(first, last, a[0].p, a[1].i, a[2].i, a[3].i, a[4].i, a[5].i, a[6].p, a[7].d, a[8].p,
                                a[9].p);
}
#if defined(EIGHTBIT)
static double call_convolve_eightbit(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(convolve_eightbit)(first, last, a[0].p, a[1].i, a[2].p, a[3].p, a[4].p, a[5].i, a[6].p, a[7].p,
                                           a[8].i, a[9].i, a[10].i, a[11].i, a[12].p, a[13].p);
}
#endif
static double call_costs(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(costs)(first, last, a[0].p, a[1].p, a[2].p, a[3].p, a[4].i, a[5].i, a[6].i, a[7].i, a[8].i,
                               a[9].i, a[10].i, a[11].d, a[12].p, a[13].p);
}
static double call_difference(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(difference)(first, last, a[0].p, a[1].d, a[2].i, a[3].i, a[4].i, a[5].p, a[6].d, a[7].p,
                                    a[8].i, a[9].i, a[10].i, a[11].i, a[12].p, a[13].i, a[14].i, a[15].i, a[16].i,
                                    a[17].i, a[18].d, a[19].p);
}
static double call_displacement_field(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(displacement_field)(first, last, a[0].p, a[1].i, a[2].i, a[3].i, a[4].p, a[5].p, a[6].p,
                                            a[7].i, a[8].i, a[9].p);
}
static double call_equalise(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(equalise)(first, last, a[0].p, a[1].i, a[2].p, a[3].i, a[4].p, a[5].i, a[6].d, a[7].d, a[8].d,
                                  a[9].d, a[10].p);
}
static double call_folds(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(folds)(first, last, a[0].p, a[1].i, a[2].i, a[3].i);
}
static double call_halfway(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(halfway)(first, last, a[0].p, a[1].p, a[2].i, a[3].i, a[4].i, a[5].p);
}
static double call_jacobian(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(jacobian)(first, last, a[0].p, a[1].i, a[2].i, a[3].i, a[4].p, a[5].d, a[6].p);
}
static double call_lanes(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(lanes)(first, last, a[0].p, a[1].p, a[2].i, a[3].i, a[4].d, a[5].i, a[6].p);
}
static double call_mind_channels(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(mind_channels)(first, last, a[0].p, a[1].p, a[2].i, a[3].i, a[4].i, a[5].i, a[6].i, a[7].i,
                                       a[8].p, a[9].d, a[10].d, a[11].p);
}
static double call_mind_differences(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(mind_differences)(first, last, a[0].p, a[1].p, a[2].i, a[3].i, a[4].i, a[5].i, a[6].p);
}
static double call_mind_scale(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(mind_scale)(first, last, a[0].p, a[1].p, a[2].i, a[3].i, a[4].i, a[5].i, a[6].i);
}
static double call_neutral(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(neutral)(first, last, a[0].p, a[1].i, a[2].i, a[3].i, a[4].i, a[5].i, a[6].p);
}
static double call_penalty(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(penalty)(first, last, a[0].p, a[1].i, a[2].i, a[3].i, a[4].p, a[5].d, a[6].d, a[7].i, a[8].i,
                                 a[9].i, a[10].p);
}
static double call_pool(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(pool)(first, last, a[0].p, a[1].p, a[2].i, a[3].i, a[4].i, a[5].i, a[6].p);
}
#if defined(EIGHTBIT)
static double call_pool_eightbit(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(pool_eightbit)(first, last, a[0].p, a[1].i, a[2].i, a[3].i, a[4].p);
}
#endif
static double call_resample(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(resample)(first, last, a[0].p, a[1].i, a[2].i, a[3].i, a[4].p, a[5].i, a[6].i, a[7].p, a[8].p);
}
static double call_sample(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(sample)(first, last, a[0].p, a[1].i, a[2].i, a[3].i, a[4].i, a[5].p, a[6].i, a[7].i, a[8].p);
}
static double call_sample_known(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(sample_known)(first, last, a[0].p, a[1].p, a[2].i, a[3].i, a[4].i, a[5].i, a[6].p, a[7].i,
                                      a[8].d, a[9].p, a[10].p);
}
static double call_kept_sums(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(kept_sums)(first, last, a[0].p, a[1].i, a[2].p, a[3].d, a[4].p);
}
static double call_smooth_columns(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(smooth_columns)(first, last, a[0].p, a[1].i, a[2].i, a[3].i, a[4].i, a[5].i);
}
static double call_smooth_planes(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(smooth_planes)(first, last, a[0].p, a[1].p, a[2].i, a[3].i, a[4].i);
}
static double call_softmax_sums(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(softmax_sums)(first, last, a[0].p, a[1].i, a[2].i, a[3].i, a[4].i, a[5].i, a[6].i, a[7].p,
                                      a[8].i, a[9].d, a[10].p);
}
static double call_squared_errors(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(squared_errors)(first, last, a[0].p, a[1].i, a[2].p, a[3].p);
}
#if defined(EIGHTBIT)
static double call_to_eightbit(int64_t first, int64_t last, const Slot *a) {
    return NAMED_KERNEL(to_eightbit)(first, last, a[0].p, a[1].p, a[2].p, a[3].i, a[4].i, a[5].p);
}
#endif

const Call NAMED(calls, SUFFIX)[KERNELS] = {
    call_adam,
    call_best_steps,
    call_blur_across,
    call_blur_rows,
    call_choose,
#if defined(EIGHTBIT)
    call_convolve_eightbit,
#else
    NULL,
#endif
    call_costs,
    call_difference,
    call_displacement_field,
    call_equalise,
    call_folds,
    call_halfway,
    call_jacobian,
    call_lanes,
    call_mind_channels,
    call_mind_differences,
    call_mind_scale,
    call_neutral,
    call_penalty,
    call_pool,
#if defined(EIGHTBIT)
    call_pool_eightbit,
#else
    NULL,
#endif
    call_resample,
    call_sample,
    call_sample_known,
    call_kept_sums,
    call_smooth_columns,
    call_smooth_planes,
    call_softmax_sums,
    call_squared_errors,
#if defined(EIGHTBIT)
    call_to_eightbit,
#else
    NULL,
#endif
};
#endif
