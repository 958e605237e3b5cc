/* Every kernel, for the instruction set of the file that includes this: base.c, v3.c or v4.c, which say for which
 * processor is compiled and how wide its registers are. */
#include "kernels.h"

#include "signatures.h"

#include "adam.c"
#include "blur.c"
#include "costs.c"
#include "difference.c"
#include "eightbit.c"
#include "equalise.c"
#include "jacobian.c"
#include "mind.c"
#include "penalty.c"
#include "sample.c"
#include "smooth.c"
#include "softmax.c"
#include "trimmed.c"
