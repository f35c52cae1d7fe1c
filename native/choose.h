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

/* What weights may be left out: those whose sum S and sum of squares Q have alike Q + (S / most)^2 <= left^2. With 0 and 1 they hold no
 * more than `left` of everything. What is left is estimated: then what its weights get wrong is one thing for each of them, and adds up
 * as squares do, so that `alike` weights that are the same may hold `left`, four times as many twice as much, and `most` times as much
 * any number of them: means are wrong in one direction, too. */
typedef struct {
    float left, alike, most;
} hgca_missing;

/* Of rows with the mean value of their block, and of groups and blocks with their own mean key and value; measured (docs/log.md). */
#define HGCA_ROWS_ALIKE 50.0f
#define HGCA_ROWS_MOST 8.0f
#define HGCA_GROUPS_ALIKE 8.0f
#define HGCA_GROUPS_MOST 4.0f

/* Bins in order of weight until the others may be left out and at least `least` rows are taken, never more than `most`. Weights were cut
 * to bf16, so what they add up to, and not the sum before that, says what is left. `floor` is the least weight that was counted: what is
 * lighter is not taken, or more would be than the bins know of. */
hgca_edge hgca_choose_edge(const hgca_bins *bins, const hgca_missing *missing, int64_t least, int64_t most, float floor);

/* 2^(max - total), 0 over nothing. */
float hgca_share(float max, float total);

/* log2 of 2^a + 2^b and of sum * 2^max; -inf is nothing. */
float hgca_add_log2(float a, float b);
float hgca_mass_log2(float max, float sum);

/* A weight so small that if all have it they are half of what may be left out: an edge lies above it. */
float hgca_least_weight(const hgca_missing *missing, int64_t count);

#endif
