/* curvk: the C interface. Works from C99, C++, cffi and Numba.
 *
 * This header and the family headers it includes are the only place where a signature is written: the Python
 * bindings, the cffi text, the range checks and the level dispatch are derived from them at build time.
 *
 * Conventions
 *   const T* input, T* in/out, int64_t sizes and flags, double scalars, int32_t status (0 is success).
 *   A comment after a scalar is its range, checked before anything is written; NaN is outside every range.
 *   A trailing "or null" marks a pointer that may be null.
 *   bf16 and f16 arrays travel as uint16_t bit patterns; the format is in the function's name. curvk_bf16 is always bf16.
 *   "with the tables" marks an array that is only read and, in the CUDA library, lies on the device all the same.
 *   "per row" marks an array with a number for each array of a list, "per 32" a table whose arrays have one element for 32
 *   of the first table's, in C order; the last may stand for fewer.
 *   `_list_` functions take tables of addresses and step all arrays in one parallel region.
 *   Arrays are contiguous, aligned to their element, and must not overlap where one of them is written.
 */
#ifndef CURVK_H
#define CURVK_H

#include "curvk/base.h"

/* ---- status --------------------------------------------------------------------------------------------------- */
CURVK_API const char* curvk_status_message(void); /* the calling thread's last failure, "" if none */
CURVK_API int32_t curvk_abi_version(void);        /* grows when a signature changes */
CURVK_API const char* curvk_version(void);

/* ---- SIMD level: 2, 3, 4 stand for x86-64-v2, v3, v4; 8 for armv8-a; 0 for the compiler's default ------------- */
CURVK_API int32_t curvk_simd(void);
CURVK_API int32_t curvk_simd_available(int32_t level); /* 1 if this build has it and this machine runs it */
CURVK_API int32_t curvk_set_simd(int32_t level);       /* nonzero status if unavailable; nothing changes then */

/* ---- threads -------------------------------------------------------------------------------------------------- */
CURVK_API int64_t curvk_num_threads(void);                   /* what the next call from this thread may use */
CURVK_API const char* curvk_threads_reason(void);            /* where that number comes from */
CURVK_API int32_t curvk_set_num_threads(int64_t n);          /* for the process; 0 returns to the default */
CURVK_API int64_t curvk_set_thread_limit(int64_t n);         /* for the calling thread; 0 lifts it; returns the old one */
CURVK_API int32_t curvk_openmp(void);                        /* OpenMP's version date, 0 if built without */
CURVK_API int32_t curvk_forked(void);                        /* 1 in a forked child, where kernels run on one thread */

#include "curvk/budget.h"
#include "curvk/capture.h"
#include "curvk/curvature.h"
#include "curvk/gram.h"
#include "curvk/half.h"
#include "curvk/linalg.h"
#include "curvk/noise.h"
#include "curvk/online.h"
#include "curvk/optim.h"
#include "curvk/sketch.h"
#include "curvk/stein.h"
#include "curvk/sweep.h"
#include "curvk/vmath.h"

#endif
