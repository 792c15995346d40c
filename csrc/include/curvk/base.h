/* What every family header needs. */
#ifndef CURVK_BASE_H
#define CURVK_BASE_H

#include <stdint.h>

#ifndef CURVK_API
#ifdef __cplusplus
#define CURVK_API extern "C" __attribute__((visibility("default")))
#else
#define CURVK_API
#endif
#endif
/* Output element i depends on element i of each array alone and, in a kernel with an `offset`, on offset + i: it may be
 * called on any split of its arrays, told where each part begins. */
#define CURVK_ELEMENTWISE CURVK_API

/* Status. A positive status k means: the k-th argument, counting from 1, is out of range. */
#define CURVK_OK 0
#define CURVK_NO_MEMORY (-1)

typedef uint16_t curvk_bf16; /* bits of a bfloat16, whatever the format of the kernel that takes it */

#endif
