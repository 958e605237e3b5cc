/* What a call of a kernel hands over, whatever the kernel. */
#ifndef REGKIT_CALL_H
#define REGKIT_CALL_H
#include <stdint.h>

/* An argument. */
typedef union {
    int64_t i;
    double d;
    void *p;
} Slot;

/* A kernel, its arguments in slots: a range [first, last) of its work. */
typedef double (*Call)(int64_t first, int64_t last, const Slot *arguments);

/* A kernel in `parts` ranges that make up [0, count), on so many threads. *sum: of what the ranges return, added in
 * their order. Returns 0, or 1 where there was no memory. */
int run_in_parts(Call call, int64_t count, int64_t parts, int threads, const Slot *arguments, double *sum);

#endif
