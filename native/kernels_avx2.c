/* AVX2 with FMA and F16C. */
#include "vocabulary_avx2.h"

#define I8_PAIRS

#include "kernels_template.h"

const hgca_isa_kernels hgca_avx2 = {"avx2", HGCA_TEMPLATE_KERNELS, {0}, MANY_I8, {0}, {0}, {0}, {0}, {0}};
