/* From scores to weights: exponentials, the softcap, the running maximum. Included by the template, in its words. */

#include "kernels_exp2.h"

/* score = log2(e) * softcap * tanh(score / softcap): capped, and in base 2 like scores that need no cap. Near zero an odd
 * polynomial (Cephes), as 1 - exp(-2x) has lost its digits there; else (1 - e) / (1 + e) with e = exp(-2 |x|), which cannot
 * overflow. NaN stays NaN. */
static void cap_scores(float *score, int rows, float softcap) {
    float e[TILE] __attribute__((aligned(64)));
    for (int r = 0; r < rows; r++) e[r] = -2.0f * LOG2E * fabsf(score[r] / softcap);
    for (int r = rows; r % VW != 0; r++) e[r] = 0.0f;
    for (int r = 0; r < rows; r += VW) vstore(e + r, vexp2(vload(e + r)));
    for (int r = 0; r < rows; r++) {
        float x = score[r] / softcap, z = x * x;
        float p = -5.70498872745e-3f;
        p = p * z + 2.06390887954e-2f;
        p = p * z - 5.37397155531e-2f;
        p = p * z + 1.33314422036e-1f;
        p = p * z - 3.33332819422e-1f;
        float near_zero = p * z * x + x, far = copysignf((1.0f - e[r]) / (1.0f + e[r]), x);
        score[r] = LOG2E * softcap * (fabsf(x) < 0.625f ? near_zero : far);
    }
}

/* Scores of one head, in base 2, become weights 2^(s - max); returns the factor what was there before must shrink by. */
static float weigh_tile(float *score, int rows, float *max, float *sum) {
    int padded = (rows + VW - 1) / VW * VW;
    for (int r = rows; r % SETTLED != 0; r++) score[r] = -INFINITY;
    const float before = *max;
    float now = before;
    VF shift = vset1(before);
    int larger = 0;
    for (int r = 0; r < padded; r += VW) larger |= vexceeds(vload(score + r), shift);
    if (larger) { /* rarely, after the first tiles: the largest is not looked for else */
        VF top = vset1(-INFINITY);
        for (int r = 0; r < padded; r += VW) top = vmax(vload(score + r), top);
        now = vlargest(top);
        shift = vset1(now);
    } else if (before == -INFINITY) { /* nothing visible so far: weights of zero, unless a score is NaN */
        for (int r = 0; r < padded; r++) score[r] = score[r] == -INFINITY ? 0.0f : score[r];
        for (int r = 0; r < rows; r++) *sum += score[r];
        return 1.0f;
    }
    VF total = vzero();
    for (int r = 0; r < padded; r += VW) {
        VF weight = vexp2(vsub(vload(score + r), shift));
        vstore(score + r, weight);
        total = vadd(total, weight);
    }
    float factor = before == now ? 1.0f : before == -INFINITY ? 0.0f : exp2f(before - now);
    *max = now;
    *sum = *sum * factor + vsum(total);
    return factor;
}

/* Weights of all heads of a pass at once, if no score of the tile is larger than the largest before, which is so but for the first
 * tiles; 0 with nothing done else. One head's vectors wait for each other, those of several do not. */
INLINE int weigh_heads(float score[][TILE], int heads, int rows, const float *max, float *sum) {
    const int padded = (rows + VW - 1) / VW * VW;
    VF shift[HEADS], total[HEADS];
    UNROLL
    for (int h = 0; h < heads; h++) {
        if (max[h] == -INFINITY) return 0;
        shift[h] = vset1(max[h]);
        total[h] = vzero();
        for (int r = rows; r % SETTLED != 0; r++) score[h][r] = -INFINITY;
    }
    VF top[HEADS];
    UNROLL
    for (int h = 0; h < heads; h++) top[h] = shift[h];
    for (int r = 0; r < padded; r += VW)
        UNROLL
        for (int h = 0; h < heads; h++) top[h] = vmax(vload(&score[h][r]), top[h]);
    int larger = 0;
    UNROLL
    for (int h = 0; h < heads; h++) larger |= vexceeds(top[h], shift[h]);
    if (larger) return 0;
    for (int r = 0; r < padded; r += VW)
        UNROLL
        for (int h = 0; h < heads; h++) {
            VF weight = vexp2(vsub(vload(&score[h][r]), shift[h]));
            vstore(&score[h][r], weight);
            total[h] = vadd(total[h], weight);
        }
    UNROLL
    for (int h = 0; h < heads; h++) sum[h] += vsum(total[h]);
    return 1;
}
