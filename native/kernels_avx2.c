/* AVX2 with FMA and F16C. */
#include "vocabulary_avx2.h"

#include "kernels_template.h"

const hgca_isa_kernels hgca_avx2 = {"avx2", HGCA_TEMPLATE_KERNELS, {0}};
