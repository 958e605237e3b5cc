/* Every kernel, for the instruction set of the file that includes this. */
#include "kernels.h"

#include "adam.h"
#include "blur.h"
#include "costs.h"
#include "difference.h"
#include "equalise.h"
#include "jacobian.h"
#include "mind.h"
#include "penalty.h"
#include "sample.h"
#include "smooth.h"
#include "softmax.h"
