/* AVX-512 with VNNI: int8 rows are multiplied as they are, 64 products an instruction. */
#include "vocabulary_avx512.h"

#define I8_DOTS
#include "kernels_template.h"

const hgca_isa_kernels hgca_avx512vnni = {"avx512vnni", HGCA_TEMPLATE_KERNELS, {0}, MANY_I8, {0}, {0}, {0}, {0}, {0}};
