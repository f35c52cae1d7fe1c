#include "choose.h"

#include <math.h>
#include <string.h>

static float edge_of(int bin) {
    uint32_t bits = 0x3f800000u - ((uint32_t)bin << 20);
    float weight;
    memcpy(&weight, &bits, sizeof weight);
    return weight;
}

hgca_edge hgca_choose_edge(const hgca_bins *bins, float left, int64_t least, int64_t most, float floor) {
    float held = 0.0f;
    int64_t rows = 0;
    for (int b = 0; b < HGCA_BINS; b++) {
        const float above = b == 0 ? INFINITY : edge_of(b - 1), from = edge_of(b) > floor ? edge_of(b) : floor;
        const int64_t room = most - rows;
        if (bins->rows[b] >= room) return (hgca_edge){from, above, room, b, 0};
        rows += bins->rows[b];
        held += bins->mass[b];
        if (held >= bins->total - left && rows >= least) return (hgca_edge){from, above, bins->rows[b], b, 0};
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

float hgca_least_weight(float mass, int64_t count) {
    float left = (1.0f - mass) * 0.5f / (float)(count > 0 ? count : 1);
    return left > 0x1p-31f ? left : 0x1p-31f;
}
