/* NEON, which every 64-bit Arm has. */
#include "vocabulary_neon.h"

#include "kernels_template.h"

const hgca_isa_kernels hgca_neon = {"neon", HGCA_TEMPLATE_KERNELS, {0}, MANY_I8, {0}, {0}, {0}, {0}, {0}};
