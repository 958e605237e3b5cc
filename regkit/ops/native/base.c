/* The kernels for what every machine of its kind has: SSE2, NEON. */
#define SUFFIX _base
#define WIDTH 4
#include "families.h"
