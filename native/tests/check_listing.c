/* What the choice of rows does in vectors, beside loops over single positions: the same rows, and sums with the same bits. */
#include "check_listing.h"

#include "codes.h"
#include "failures.h"
#include "numbers.h"
#include "select.h"

enum { MOST_GROUPS = 90, MOST = MOST_GROUPS * HGCA_LANES };

/* Weights about an edge, many of them the edge itself, and some that are none. */
static float weight_about(uint64_t *state, float edge) {
    const float odd[] = {edge, edge * 0.5f, edge * 1.5f, 0.0f, INFINITY, NAN, 1.0f, 3.0f};
    return pick(state, 2) ? odd[pick(state, 8)] : edge * (float)exp2(4.0 * uniform(state));
}

static const char *list_one(uint64_t seed) {
    uint64_t state = seed * 2654435761u + 1;
    int32_t groups[MOST_GROUPS], order[2 * MOST], right[MOST], light[MOST];
    const int64_t count = pick(&state, MOST_GROUPS), edge = pick(&state, 3) ? 8 : 1 + pick(&state, 30);
    for (int i = 0; i < 2 * MOST; i++) order[i] = pick(&state, 1 << 20);
    for (int64_t i = 0, group = 0; i < count; i++, group++) {
        if (pick(&state, 2) && group + count - i < 2 * MOST_GROUPS - 1) group++;
        groups[i] = (int32_t)group;
    }
    const size_t positions = (size_t)(count * HGCA_LANES);
    float *weight = must(malloc(positions * sizeof *weight + 1));
    int32_t *rows = must(malloc(positions * sizeof *rows + 1)), *behind = must(malloc(positions * sizeof *rows + 1));
    uint16_t *chosen = must(malloc((size_t)count * sizeof *chosen + 1));
    for (size_t i = 0; i < positions; i++) weight[i] = weight_about(&state, (float)edge / 1024.0f);
    const int64_t end = (count ? groups[count - 1] : 0) * (int64_t)HGCA_LANES + 1 + pick(&state, HGCA_LANES);
    const char memory[64] = {0};
    hgca_listing l = {.groups = groups, .count = count, .weight = pick(&state, 4) ? weight : NULL, .least = (float)edge / 1024.0f,
                      .above = (float)(edge + pick(&state, 3)) / 1024.0f, .room = pick(&state, 3) ? pick(&state, 40) : MOST,
                      .light = (float)(edge + pick(&state, 20)) / 1024.0f, .behind = behind,
                      .order = order, .clustered = pick(&state, 2 * MOST_GROUPS) * (int64_t)HGCA_LANES, .end = end,
                      .rows = rows, .chosen = chosen, .key = memory, .value = memory, .key_bytes = 64, .fetched = pick(&state, 300)};
    const int64_t found = hgca_selection_kernels()->list(&l);
    int64_t wanted = 0, lighter = 0, looked_up = 0, room = l.room;
    const char *wrong = NULL;
    for (int64_t i = 0; i < count * HGCA_LANES; i++) {
        const int64_t position = groups[i / HGCA_LANES] * (int64_t)HGCA_LANES + i % HGCA_LANES;
        int read = position < end && (!l.weight || weight[i] >= l.least);
        if (read && l.weight && !(weight[i] >= l.above)) read = room-- > 0;
        if ((chosen[i / HGCA_LANES] >> i % HGCA_LANES & 1) != read) wrong = "the bits of what is read";
        if (!read) continue;
        looked_up += position < l.clustered;
        const int32_t row = position < l.clustered ? order[position] : (int32_t)position;
        if (l.weight && !(weight[i] >= l.light)) light[lighter++] = row;
        else right[wanted++] = row;
    }
    memcpy(right + wanted, light, sizeof *light * (size_t)lighter);
    wanted += lighter;
    if (l.light_rows != lighter) wrong = "how many rows are light";
    if (found != wanted || memcmp(rows, right, sizeof *rows * (size_t)wanted)) wrong = "rows that are read";
    if (l.looked_up != looked_up) wrong = "rows looked up";
    free(weight);
    free(rows);
    free(behind);
    free(chosen);
    return wrong;
}

static const char *weigh_one(uint64_t seed) {
    uint64_t state = seed * 2654435761u + 1;
    uint16_t score[8 * MOST];
    float weight[MOST];
    const int32_t queries = 1 + pick(&state, 8);
    const int64_t count = pick(&state, MOST_GROUPS) * (int64_t)HGCA_LANES;
    float share[8], mass[HGCA_BINS] = {0}, right_mass[HGCA_BINS] = {0}, total = 0.0f;
    uint32_t rows[HGCA_BINS] = {0}, right_rows[HGCA_BINS] = {0};
    for (int64_t i = 0; i < queries * count; i++) score[i] = (uint16_t)(0x3f80 - pick(&state, pick(&state, 2) ? 40 : 4000));
    for (int q = 0; q < queries; q++) share[q] = (float)exp2(4.0 * uniform(&state) - 2.0) / (float)queries;
    hgca_weighing w = {.score = score, .count = count, .queries = queries, .share = share, .least = (float)exp2(-15.0 + 15.0 * uniform(&state)),
                       .weight = weight, .rows = rows, .mass = mass, .total = &total};
    hgca_selection_kernels()->weigh(&w);
    for (int64_t i = 0; i < count; i++) {
        float most = 0.0f;
        for (int q = 0; q < queries; q++) most = fmaxf(most, hgca_from_bf16(score[q * count + i]) * share[q]);
        if (memcmp(&most, &weight[i], sizeof most)) return "a weight";
        if (most < w.least) continue;
        uint32_t bits;
        memcpy(&bits, &most, sizeof bits);
        const uint32_t bin = bits >= 0x3f800000u ? 0 : (0x3f800000u - bits + 0xfffffu) >> 20;
        right_rows[bin]++, right_mass[bin] += most;
    }
    if (memcmp(rows, right_rows, sizeof rows)) return "weights in bins";
    return memcmp(mass, right_mass, sizeof mass) ? "what bins hold" : NULL;
}

int check_listing(int count, uint64_t seed) {
    return count_failures("listing rows", list_one, count, seed) + count_failures("weighing rows", weigh_one, count, seed);
}
