/* What all kernels share.
 *
 * Arrays are C-contiguous float32 unless a signature says otherwise; fields are (3, Z, Y, X) with components
 * (x, y, z), in cells. A kernel does a range [first, last) of its outermost axis and is called from several
 * threads at once, each with another range; it returns a share of a sum, 0, or NO_MEMORY. What it takes stands in
 * signatures.py, from which its prototype and the checks of a call are made. Scratch whose size hangs on an image
 * comes from the heap: a row of millions of voxels does not fit a thread's stack.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "call.h"

#define INLINE static inline __attribute__((always_inline))
#define JOINED(a, b) a##b
#define NAMED(name, suffix) JOINED(name, suffix)
/* SUFFIX and WIDTH, floats in a register, are those of the instruction set: see base.c, v3.c and v4.c. */
/* Found by their place in the table of calls alone. Never inlined there: they are compiled as they stand. */
#define NAMED_KERNEL(name) JOINED(kernel_, name)
#define KERNEL(name) static __attribute__((noinline)) double NAMED_KERNEL(name)

/* What a kernel returns that got no memory for its scratch; no sum is this. */
#define NO_MEMORY (-INFINITY)

/* Before a loop whose arrays do not overlap. */
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

/* Whether there are the kernels of eightbit.c: their instruction is one of some processors of this set. */
#if WIDTH == 16 && !defined(__clang__)
#define EIGHTBIT
#endif

/* Floats of a cell come in multiples of this, whatever the width of a register. */
#define LANES 16

typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef float loose_vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t loose_ivec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef float vec8 __attribute__((vector_size(32)));
typedef float vec4 __attribute__((vector_size(16)));
typedef float loose_vec4 __attribute__((vector_size(16), aligned(4), may_alias));

typedef int16_t loose_shorts __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));
typedef uint16_t loose_ushorts __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));

INLINE vec load(const float *at) { return *(const loose_vec *)at; }

/* GCC would widen 16 bits by halves of a register. */
INLINE ivec widen(const int16_t *at) {
#if WIDTH == 16
    return (ivec)_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)at));
#elif WIDTH == 8
    return (ivec)_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)at));
#else
    return __builtin_convertvector(*(const loose_shorts *)at, ivec);
#endif
}
INLINE ivec widen_unsigned(const uint16_t *at) {
#if WIDTH == 16
    return (ivec)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)at));
#elif WIDTH == 8
    return (ivec)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)at));
#else
    return __builtin_convertvector(*(const loose_ushorts *)at, ivec);
#endif
}
/* Of each pair of 16 bits in a lane the products, summed. */
INLINE ivec pair_products(ivec a, ivec b) {
#if WIDTH == 16
    return (ivec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif WIDTH == 8
    return (ivec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
    return (ivec)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}
INLINE vec load_shorts(const int16_t *at) { return __builtin_convertvector(widen(at), vec); }
INLINE void store(float *at, vec value) { *(loose_vec *)at = value; }
INLINE vec all(float value) { return (vec){0} + value; }

/* The first `lanes` floats of a vector alone; the others are 0. */
INLINE vec load_some(const float *at, int64_t lanes) {
#if WIDTH == 16
    return _mm512_maskz_loadu_ps((__mmask16)((1 << lanes) - 1), at);
#else
    vec some = all(0);
    memcpy(&some, at, lanes * sizeof(float));
    return some;
#endif
}
INLINE void store_some(float *at, vec value, int64_t lanes) {
#if WIDTH == 16
    _mm512_mask_storeu_ps(at, (__mmask16)((1 << lanes) - 1), value);
#else
    memcpy(at, &value, lanes * sizeof(float));
#endif
}

/* Whether a comparison is true in one lane or more. */
INLINE int any(ivec lanes) {
#if WIDTH == 16
    return _mm512_test_epi32_mask((__m512i)lanes, (__m512i)lanes) != 0;
#elif WIDTH == 8
    return _mm256_movemask_ps((__m256)lanes) != 0;
#else
    return (lanes[0] | lanes[1] | lanes[2] | lanes[3]) != 0;
#endif
}

/* Where the vector after the one at i begins in a row of n >= WIDTH floats: the last one ends with the row, and does
 * some of it again. */
INLINE int64_t next_vector(int64_t i, int64_t n) { return i + 2 * WIDTH <= n ? i + WIDTH : n - WIDTH; }

/* Four floats with the same sum as the lanes. */
INLINE vec4 quarter(vec v) {
#if WIDTH == 4
    return v;
#else
#if WIDTH == 16
    vec8 halves[2];
    memcpy(halves, &v, sizeof v);
    const vec8 half = halves[0] + halves[1];
#else
    const vec8 half = v;
#endif
    vec4 quarters[2];
    memcpy(quarters, &half, sizeof half);
    return quarters[0] + quarters[1];
#endif
}

/* GCC has the builtin of clang's name from 12 on. */
#if defined(__clang__)
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t ivec4 __attribute__((vector_size(16)));
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (ivec4){i, j, k, l})
#endif

INLINE float total(vec v) {
    const vec4 q = quarter(v);
    return (q[0] + q[1]) + (q[2] + q[3]);
}

/* The sums over the lanes of four vectors. */
INLINE vec4 totals(vec a, vec b, vec c, vec d) {
    const vec4 qa = quarter(a), qb = quarter(b), qc = quarter(c), qd = quarter(d);
    const vec4 ab = SHUFFLE(qa, qb, 0, 4, 1, 5) + SHUFFLE(qa, qb, 2, 6, 3, 7);
    const vec4 cd = SHUFFLE(qc, qd, 0, 4, 1, 5) + SHUFFLE(qc, qd, 2, 6, 3, 7);
    return SHUFFLE(ab, cd, 0, 1, 4, 5) + SHUFFLE(ab, cd, 2, 3, 6, 7);
}

/* exp(v) for v <= 0, to 2e-7 of itself; 0 below -87. */
INLINE float exponential(float v) {
    const float t = v * 1.44269504f, whole = floorf(t + 0.5f), u = (t - whole) * 0.69314718f;
    const float p = 1 + u * (1 + u * (0.5f + u * (0.16666667f + u * (0.041666667f + u * (8.3333333e-3f + u * 1.3888889e-3f)))));
    const int32_t power = ((int32_t)(whole < -126 ? -127 : whole) + 127) << 23;
    float two;
    memcpy(&two, &power, sizeof two);
    return p * two;
}
