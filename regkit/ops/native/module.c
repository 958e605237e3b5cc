/* An extension module without a function: Python finds it like any other, and ctypes calls what is exported. */
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

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

#if defined(__x86_64__)
/* What the processor has and the system keeps when threads change. Asked for here, since __builtin_cpu_supports()
 * needs a library of the compiler's that Windows' linker does not know. */
typedef struct {
    unsigned features, wide, more, narrow; /* of leaf 1 ecx, and of leaf 7 ebx, ecx and, in its second part, eax */
    unsigned long long kept;               /* registers */
} Processor;

static Processor processor(void) {
    Processor p = {0};
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return p;
    p.features = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) p.wide = b, p.more = c;
    if (p.wide && a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) p.narrow = a;
    if (p.features >> 27 & 1) { /* xgetbv may be asked */
        __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
        p.kept = (unsigned long long)d << 32 | a;
    }
    return p;
}

static int has(unsigned found, unsigned bits) { return (found & bits) == bits; }

#define FMA (1u << 12)
#define AVX2_BMI (1u << 5 | 1u << 3 | 1u << 8)
#define AVX512 (1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31) /* F, DQ, CD, BW, VL */
#define VNNI (1u << 11)
#define BFLOAT16 (1u << 5)
#define REGISTERS_256 0x6ull
#define REGISTERS_512 0xe6ull
#endif

/* Which of the sets is the most that this processor has. */
EXPORTED int instruction_set(void) {
#if defined(__x86_64__)
    const Processor p = processor();
    const int v3 = has(p.features, FMA) && has(p.wide, AVX2_BMI) && (p.kept & REGISTERS_256) == REGISTERS_256;
    const int v4 = v3 && has(p.wide, AVX512) && (p.kept & REGISTERS_512) == REGISTERS_512;
    return v3 + v4;
#else
    return 0;
#endif
}

/* Runs a kernel of a set: see run_in_parts(). Returns 2 where the set has no such kernel. */
EXPORTED int run(int set, int kernel, int64_t count, int64_t parts, int threads, const Slot *arguments, double *sum) {
    const Call call = of_set[set][kernel];
    return call == NULL ? 2 : run_in_parts(call, count, parts, threads, arguments, sum);
}

/* Whether the processor multiplies bfloat16 faster than float32. */
EXPORTED int fast_bfloat16(void) {
#if defined(__x86_64__)
    return instruction_set() == 2 && has(processor().narrow, BFLOAT16);
#else
    return 0;
#endif
}

/* Whether the processor has instructions for sums of products of 8 bits, four at a time. */
EXPORTED int fast_eightbit(void) {
#if defined(__x86_64__) && !defined(__clang__)
    return instruction_set() == 2 && has(processor().more, VNNI);
#else
    return 0;
#endif
}
