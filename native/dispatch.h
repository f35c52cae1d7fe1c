/* Which kernels run: the fastest this machine has, unless told otherwise. */
#ifndef HGCA_DISPATCH_H
#define HGCA_DISPATCH_H

#include "kernels.h"

const hgca_isa_kernels *hgca_kernels(void);

/* The kernel for a job that was checked: a query of bf16 numbers may have one of its own. `fetched`: whether its rows are brought into
 * the caches before its queries come. */
const hgca_kernel *hgca_kernel_for(const hgca_attention *job, int fetched);

/* What reads rows and does nothing with them (only_read.c). */
const hgca_kernel *hgca_only_read(int dtype);

#endif
