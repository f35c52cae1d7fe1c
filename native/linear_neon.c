/* NEON, which every 64-bit Arm has: 4 floats. */
#include "linear.h"
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

static inline VI vfloats(VI x) {
    static const int8_t table[16] = {HGCA_FLOATS4};
    return vreinterpretq_s32_s8(vqtbl1q_s8(vld1q_s8(table), vreinterpretq_u8_s32(x)));
}

static inline VI vcode8(VI x) { return x; }
static inline VI vdots8(VI sum, VI a, VI b) { return vaddq_s32(sum, vsums(vdots4(vnone(), a, b))); }
static inline VI vlevels(VI a, VI b) { return vaddq_s32(vshlq_n_s32(a, 7), b); }
static inline VF vlanes(VI x) { return vcvtq_f32_s32(x); }

/* Not tried on hardware: by count of instructions floats are no slower. */
enum { SEVERAL = 4, TILES = 1, VECTORS_AT_ONCE = 4, MOST_VECTORS = 0 };

static inline void vpairs4(VI x, VI to[4]) {
    const uint32x4_t bytes = vreinterpretq_u32_s32(x), low = vdupq_n_u32(0x000f000f);
    to[0] = vreinterpretq_s32_u32(vandq_u32(bytes, low));
    to[1] = vreinterpretq_s32_u32(vandq_u32(vshrq_n_u32(bytes, 8), low));
    to[2] = vreinterpretq_s32_u32(vandq_u32(vshrq_n_u32(bytes, 4), low));
    to[3] = vreinterpretq_s32_u32(vandq_u32(vshrq_n_u32(bytes, 12), low));
}

static inline void vpairs8(VI x, VI to[2]) {
    const int16x8_t both = vreinterpretq_s16_s32(x);
    to[0] = vreinterpretq_s32_s16(vshrq_n_s16(vshlq_n_s16(both, 8), 8));
    to[1] = vreinterpretq_s32_s16(vshrq_n_s16(both, 8));
}

static inline VI vfloat_pairs(VI x) {
    return vreinterpretq_s32_s16(vshrq_n_s16(vshlq_n_s16(vreinterpretq_s16_s32(vfloats(x)), 8), 8));
}

static inline VI vpair(const int16_t *p) {
    int32_t both;
    memcpy(&both, p, sizeof both);
    return vdupq_n_s32(both);
}

static inline VI vheld(VI x) { return x; }

static inline VI vdots2(VI sum, VI a, VI b) {
    const int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
    return vaddq_s32(sum, vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y)));
}

#include "linear_template.h"

const hgca_isa_linear hgca_linear_neon = HGCA_TEMPLATE_LINEAR;
