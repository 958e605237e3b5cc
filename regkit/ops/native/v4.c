/* The kernels for x86-64-v4: AVX-512. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=x86-64-v4"))), apply_to = function)
#else
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#endif
#define SUFFIX _v4
#define WIDTH 16
#include "families.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
