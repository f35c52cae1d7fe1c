/* The templates' words in NEON, which every 64-bit Arm has: 4 floats, 32 registers, four query heads a pass. */
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "hgca.h"

typedef float32x4_t VF;
enum { VW = 4, SETTLED = VW };
#define HEADS 4
#define ROWS 4
#define COLUMNS 4

static inline VF vzero(void) { return vdupq_n_f32(0.0f); }
static inline VF vset1(float x) { return vdupq_n_f32(x); }
static inline VF vload(const float *p) { return vld1q_f32(p); }
static inline void vstore(float *p, VF x) { vst1q_f32(p, x); }
static inline VF vmul(VF a, VF b) { return vmulq_f32(a, b); }
static inline VF vadd(VF a, VF b) { return vaddq_f32(a, b); }
static inline VF vsub(VF a, VF b) { return vsubq_f32(a, b); }
static inline VF vfma(VF a, VF b, VF c) { return vfmaq_f32(c, a, b); }
static inline VF vmax(VF a, VF b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
static inline int vexceeds(VF a, VF b) { return vmaxvq_u32(vcgtq_f32(a, b)) != 0; }
static inline VF vround(VF x) { return vrndnq_f32(x); }
static inline void vsettle(float score[][64], int rows) { (void)score, (void)rows; }
static inline float vsum(VF x) { return vaddvq_f32(x); }

static inline float vlargest(VF x) {
    float each[4];
    vst1q_f32(each, x);
    float top = each[0];
    for (int i = 1; i < 4; i++) top = each[i] > top ? each[i] : top;
    return top;
}

static inline VF vscale2(VF x, VF n) {
    return vmulq_f32(x, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23)));
}

static inline void vsum4(VF a, VF b, VF c, VF d, float *out) {
    vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}

static inline void vsum_heads(VF sum[HEADS][4], int heads, float score[][64], int r) {
    for (int h = 0; h < heads; h++) vsum4(sum[h][0], sum[h][1], sum[h][2], sum[h][3], &score[h][r]);
}

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

static inline void vload_pair(const char *p, VF *even, VF *odd) {
    uint32x4_t both;
    memcpy(&both, p, sizeof both);
    *even = vreinterpretq_f32_u32(vshlq_n_u32(both, 16));
    *odd = vreinterpretq_f32_u32(vandq_u32(both, vdupq_n_u32(0xffff0000u)));
}

static inline VF vtail_rows(const char *p, int dtype, int n) {
    char whole[16] = {0};
    memcpy(whole, p, (size_t)n * (dtype == HGCA_F32 ? 4 : dtype == HGCA_I8 ? 1 : 2));
    return vload_rows(whole, dtype);
}
