/* Every kernel, for the instruction set of the file that includes this. */
#include "kernels.h"

#include "difference.h"
#include "penalty.h"
#include "smooth.h"
