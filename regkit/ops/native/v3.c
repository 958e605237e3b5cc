/* The kernels for x86-64-v3: AVX2 and FMA. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,f16c,fma,lzcnt,movbe"))), apply_to = function)
#else
#pragma GCC target("arch=x86-64-v3")
#endif
#define SUFFIX _v3
#define WIDTH 8
#include "families.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
