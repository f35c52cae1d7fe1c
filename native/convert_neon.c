/* NEON, which every 64-bit Arm has: 4 floats. */
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "hgca.h"

typedef float32x4_t VF;
typedef uint32x4_t VU;
#define STREAMS 0
enum { VW = 4 };

static inline VF vset1(float x) { return vdupq_n_f32(x); }
static inline VF vmul(VF a, VF b) { return vmulq_f32(a, b); }
static inline VU vuzero(void) { return vdupq_n_u32(0); }
static inline VU vumax(VU a, VU b) { return vmaxq_u32(a, b); }
static inline VU vabs_bits(VF x) { return vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0x7fffffffu)); }
static inline uint32_t vulargest(VU x) { return vmaxvq_u32(x); }

static inline VF vload_from(const char *p, int dtype) {
    if (dtype == HGCA_F32) {
        VF x;
        memcpy(&x, p, sizeof x);
        return x;
    }
    uint16x4_t half;
    memcpy(&half, p, sizeof half);
    if (dtype == HGCA_F16) return vcvt_f32_f16(vreinterpret_f16_u16(half));
    return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
}

static inline uint16x4_t to_bf16(VF x) {
    uint32x4_t bits = vreinterpretq_u32_f32(x), top = vshrq_n_u32(bits, 16);
    uint32x4_t odd = vandq_u32(top, vdupq_n_u32(1));
    uint32x4_t rounded = vshrq_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
    return vmovn_u32(vbslq_u32(vceqq_f32(x, x), rounded, vorrq_u32(top, vdupq_n_u32(0x40))));
}

static inline void vstore_to(char *p, int dtype, VF x) {
    if (dtype == HGCA_F32) {
        memcpy(p, &x, sizeof x);
        return;
    }
    uint16x4_t half = dtype == HGCA_F16 ? vreinterpret_u16_f16(vcvt_f16_f32(x)) : to_bf16(x);
    memcpy(p, &half, sizeof half);
}

static inline void vstore_i8(char *p, VF x) {
    int16x4_t words = vmovn_s32(vcvtnq_s32_f32(x));
    int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    memcpy(p, &bytes, 4);
}

#include "convert_template.h"

const hgca_isa_converters hgca_convert_neon = HGCA_TEMPLATE_CONVERTERS;
