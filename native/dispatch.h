/* Which kernels run: the fastest this machine has, unless told otherwise. */
#ifndef HGCA_DISPATCH_H
#define HGCA_DISPATCH_H

#include "kernels.h"

const hgca_isa_kernels *hgca_kernels(void);

#endif
