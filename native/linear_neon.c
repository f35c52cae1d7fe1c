/* NEON, which every 64-bit Arm has: 4 floats. */
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "hgca.h"

typedef float32x4_t VF;
enum { VW = 4 };

static inline VF vzero(void) { return vdupq_n_f32(0.0f); }
static inline VF vset1(float x) { return vdupq_n_f32(x); }
static inline VF vmul(VF a, VF b) { return vmulq_f32(a, b); }
static inline VF vload(const float *p) { return vld1q_f32(p); }
static inline VF vadd(VF a, VF b) { return vaddq_f32(a, b); }
static inline VF vfma(VF a, VF b, VF c) { return vfmaq_f32(c, a, b); }
static inline float vsum(VF x) { return vaddvq_f32(x); }

static inline VF vload_rows(const char *p, int dtype) {
    if (dtype == HGCA_F32) {
        VF x;
        memcpy(&x, p, sizeof x);
        return x;
    }
    if (dtype == HGCA_I8) {
        int32_t four;
        memcpy(&four, p, sizeof four);
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
    }
    uint16x4_t half;
    memcpy(&half, p, sizeof half);
    if (dtype == HGCA_F16) return vcvt_f32_f16(vreinterpret_f16_u16(half));
    return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
}

static inline VF vtail_rows(const char *p, int dtype, int n) {
    char whole[16] = {0};
    memcpy(whole, p, (size_t)n * (dtype == HGCA_F32 ? 4 : 2));
    return vload_rows(whole, dtype);
}

static inline void vnibbles(const char *p, VF *low, VF *high) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    uint32x4_t both = vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)))));
    *low = vcvtq_f32_u32(vandq_u32(both, vdupq_n_u32(15)));
    *high = vcvtq_f32_u32(vshrq_n_u32(both, 4));
}

#include "linear_template.h"

const hgca_isa_linear hgca_linear_neon = HGCA_TEMPLATE_LINEAR;
