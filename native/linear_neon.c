/* NEON, which every 64-bit Arm has: 4 floats. */
#include "vocabulary_neon.h"

static inline void vnibbles(const char *p, VF *low, VF *high) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    uint32x4_t both = vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)))));
    *low = vcvtq_f32_u32(vandq_u32(both, vdupq_n_u32(15)));
    *high = vcvtq_f32_u32(vshrq_n_u32(both, 4));
}

#include "linear_template.h"

const hgca_isa_linear hgca_linear_neon = HGCA_TEMPLATE_LINEAR;
