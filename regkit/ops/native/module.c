/* An extension module without a function: Python finds it like any other, and ctypes calls what is exported. */
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include "call.h"
#include "signatures.h"

#if defined(_WIN32)
#define EXPORTED __declspec(dllexport)
#else
#define EXPORTED __attribute__((visibility("default")))
#endif

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_kernels", NULL, -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModule_Create(&definition); }

/* Of the table of signatures that the library was compiled for. */
EXPORTED const char *digest(void) { return DIGEST; }

/* The kernels by instruction set, the most that a processor can have last. */
extern const Call calls_base[KERNELS];
#if defined(__x86_64__)
extern const Call calls_v3[KERNELS], calls_v4[KERNELS];
static const Call *const of_set[] = {calls_base, calls_v3, calls_v4};
#else
static const Call *const of_set[] = {calls_base};
#endif

/* Which of the sets is the most that this processor has. */
EXPORTED int instruction_set(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512cd"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
        __builtin_cpu_supports("bmi2"))
        return 1;
#endif
    return 0;
}

/* Runs a kernel of a set: see run_in_parts(). Returns 2 where the set has no such kernel. */
EXPORTED int run(int set, int kernel, int64_t count, int64_t parts, int threads, const Slot *arguments, double *sum) {
    const Call call = of_set[set][kernel];
    return call == NULL ? 2 : run_in_parts(call, count, parts, threads, arguments, sum);
}

/* Whether the processor multiplies bfloat16 faster than float32. */
EXPORTED int fast_bfloat16(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512bf16") != 0;
#else
    return 0;
#endif
}

/* Whether the processor has instructions for sums of products of 8 bits, four at a time. */
EXPORTED int fast_eightbit(void) {
#if defined(__x86_64__) && !defined(__clang__)
    return instruction_set() == 2 && __builtin_cpu_supports("avx512vnni") != 0;
#else
    return 0;
#endif
}
