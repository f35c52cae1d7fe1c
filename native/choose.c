#include "choose.h"

#include <math.h>
#include <string.h>

static float edge_of(int bin) {
    uint32_t bits = 0x3f800000u - ((uint32_t)bin << 20);
    float weight;
    memcpy(&weight, &bits, sizeof weight);
    return weight;
}

static int may_be_left(const hgca_missing *missing, float sum, float squares) {
    const float far = sum / missing->most;
    return missing->alike * squares + far * far <= missing->left * missing->left;
}

/* The last bin that has to be taken. From the lightest on: what is left is a small part of everything, and no difference tells it. */
static int last_bin(const hgca_bins *bins, const hgca_missing *missing) {
    float sum = bins->total, squares = 0.0f;
    for (int b = 0; b < HGCA_BINS; b++) sum -= bins->mass[b];
    if (!(sum > 0.0f)) sum = 0.0f; /* what was not counted */
    for (int b = HGCA_BINS - 1; b > 0; b--) {
        if (bins->rows[b] == 0) continue;
        sum += bins->mass[b];
        squares += bins->mass[b] * bins->mass[b] / (float)bins->rows[b]; /* those of a bin are about the same */
        if (!may_be_left(missing, sum, squares)) return b;
    }
    return 0;
}

hgca_edge hgca_choose_edge(const hgca_bins *bins, const hgca_missing *missing, int64_t least, int64_t most, float floor) {
    const int last = last_bin(bins, missing);
    int64_t rows = 0;
    for (int b = 0; b < HGCA_BINS; b++) {
        const float above = b == 0 ? INFINITY : edge_of(b - 1), from = edge_of(b) > floor ? edge_of(b) : floor;
        const int64_t room = most - rows;
        if (bins->rows[b] >= room) return (hgca_edge){from, above, room, b, 0};
        rows += bins->rows[b];
        if (b >= last && rows >= least) return (hgca_edge){from, above, bins->rows[b], b, 0};
    }
    return (hgca_edge){floor, 0.0f, 0, HGCA_BINS - 1, 0};
}

float hgca_share(float max, float total) { return max == -INFINITY ? 0.0f : exp2f(max - total); }

float hgca_mass_log2(float max, float sum) { return sum == 0.0f ? -INFINITY : max + log2f(sum); }

float hgca_add_log2(float a, float b) {
    float high = a > b ? a : b, low = a > b ? b : a;
    if (a != a || b != b) return NAN;
    return low == -INFINITY ? high : high + log2f(1.0f + exp2f(low - high));
}

float hgca_least_weight(const hgca_missing *missing, int64_t count) {
    const float n = (float)(count > 0 ? count : 1);
    const float least = 0.5f * missing->left / sqrtf(missing->alike * n + n * n / (missing->most * missing->most));
    return least > 0x1p-31f ? least : 0x1p-31f;
}
