/* An extension module without a function: Python finds it like any other, and ctypes calls its kernels. */
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_kernels", NULL, -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModule_Create(&definition); }

/* To be raised, with _VERSION in __init__.py, whenever a kernel takes other arguments or gives other results. */
__attribute__((visibility("default"))) int version(void) { return 14; }

/* What the names of the kernels for this machine end with. */
__attribute__((visibility("default"))) const char *suffix(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512cd"))
        return "_v4";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
        __builtin_cpu_supports("bmi2"))
        return "_v3";
#endif
    return "_base";
}

/* Whether the processor multiplies bfloat16 faster than float32. */
__attribute__((visibility("default"))) int fast_bfloat16(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512bf16") != 0;
#else
    return 0;
#endif
}

/* Whether the processor has instructions for sums of products of 8 bits, four at a time. */
__attribute__((visibility("default"))) int fast_eightbit(void) {
#if defined(__x86_64__) && !defined(__clang__)
    return suffix()[2] == '4' && __builtin_cpu_supports("avx512vnni") != 0;
#else
    return 0;
#endif
}
