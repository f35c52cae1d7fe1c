/* NEON, which every 64-bit Arm has: 4 floats. */
#include "vocabulary_neon.h"

typedef int32x4_t VI;
typedef struct {
    int16x8_t low, high; /* of the first two rows and of the others, four sums each */
} VS;
enum { OFFSET8 = 0 };

static inline VS vnone(void) { return (VS){vdupq_n_s16(0), vdupq_n_s16(0)}; }
static inline VI vint(int32_t x) { return vdupq_n_s32(x); }

static inline VI vbytes(const char *p) {
    VI x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline VI vfour(const int8_t *p) {
    int32_t all;
    memcpy(&all, p, sizeof all);
    return vdupq_n_s32(all);
}

static inline void vhalves(VI x, VI *low, VI *high) {
    const uint8x16_t bytes = vreinterpretq_u8_s32(x);
    *low = vreinterpretq_s32_u8(vandq_u8(bytes, vdupq_n_u8(15)));
    *high = vreinterpretq_s32_u8(vshrq_n_u8(bytes, 4));
}

static inline VI vsums(VS sum) { return vpaddq_s32(vpaddlq_s16(sum.low), vpaddlq_s16(sum.high)); }

static inline VS vdots4(VS sum, VI a, VI b) {
    const int8x16_t x = vreinterpretq_s8_s32(a), y = vreinterpretq_s8_s32(b);
    return (VS){vmlal_s8(sum.low, vget_low_s8(x), vget_low_s8(y)), vmlal_high_s8(sum.high, x, y)};
}

static inline VI vcode8(VI x) { return x; }
static inline VI vdots8(VI sum, VI a, VI b) { return vaddq_s32(sum, vsums(vdots4(vnone(), a, b))); }
static inline VI vlevels(VI a, VI b) { return vaddq_s32(vshlq_n_s32(a, 7), b); }
static inline VF vlanes(VI x) { return vcvtq_f32_s32(x); }

#include "linear_template.h"

const hgca_isa_linear hgca_linear_neon = HGCA_TEMPLATE_LINEAR;
