/* AVX-512 without dot products of small numbers: Skylake-X and its like. */
#include "vocabulary_avx512.h"

#include "kernels_template.h"

const hgca_isa_kernels hgca_avx512 = {"avx512", HGCA_TEMPLATE_KERNELS, {0}, MANY_I8, {0}, {0}, {0}, {0}, {0}};
