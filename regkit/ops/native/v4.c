/* The kernels for x86-64-v4: AVX-512. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,f16c,fma,lzcnt,movbe,avx512f,avx512bw,avx512cd,avx512dq,avx512vl"))), apply_to = function)
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
