/* From weights in bins to the least weight that is taken. */
#ifndef HGCA_CHOOSE_H
#define HGCA_CHOOSE_H

#include <stdint.h>

#include "select.h"

typedef struct {
    uint32_t rows[HGCA_BINS];
    float mass[HGCA_BINS];
    float total; /* of all weights, counted or not */
} hgca_bins;

/* Weights of at least `least` are taken; of those below `above` (they share the last bin) only `room`, in all. */
typedef struct {
    float least;
    float above;
    int64_t room;
    int32_t bin;
    int32_t all; /* whatever they weigh */
} hgca_edge;

/* Bins in order of weight until the others hold no more than `left` and at least `least` rows are taken, never more than
 * `most`. Weights were cut to bf16, so what they add up to, and not the sum before that, says what is left. `floor` is
 * the least weight that was counted: what is lighter is not taken, or more would be than the bins know of. */
hgca_edge hgca_choose_edge(const hgca_bins *bins, float left, int64_t least, int64_t most, float floor);

/* 2^(max - total), 0 over nothing. */
float hgca_share(float max, float total);

/* log2 of 2^a + 2^b and of sum * 2^max; -inf is nothing. */
float hgca_add_log2(float a, float b);
float hgca_mass_log2(float max, float sum);

/* Weights so small that all of them together are half of what may be left out: an edge lies above them. */
float hgca_least_weight(float mass, int64_t count);

#endif
