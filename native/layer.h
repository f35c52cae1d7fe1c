/* Pieces of a decoder layer, of one token or of one of each of several sequences. */
#ifndef HGCA_LAYER_H
#define HGCA_LAYER_H

#include "hgca.h"

/* What has to fit together; linear layers look at the rest. */
int hgca_layer_fits(const hgca_layer *layer);
int hgca_mixture_fits(const hgca_mixture *mixture, int32_t width);
int hgca_reading_fits(const hgca_layer *layer, const hgca_reading *reading);

static inline void hgca_add(const float *a, const float *b, float *to, int64_t count) {
    for (int64_t i = 0; i < count; i++) to[i] = a[i] + b[i];
}

/* A root-mean-square norm in two steps: what a vector's numbers are multiplied with, and numbers first .. first + count - 1 of the
 * result, `from` and `to` being those. */
float hgca_norm_inverse(const hgca_norm *norm, const float *from, int64_t width);
void hgca_norm_by(const hgca_norm *norm, float inverse, const float *from, int64_t first, int64_t count, float *to);

int hgca_norm_rows(const hgca_norm *norm, const float *in, int64_t rows, int64_t width, float *out);

/* One token's heads through their norms; the first `rotated` numbers of each as pairs, number d and number d + rotated / 2, turned
 * by an angle each. */
int hgca_turn_heads(const hgca_layer *layer, float *query, float *key, const float *cosine, const float *sine);

/* A token's key [kv_heads][dim] and value become row `row` of a window. */
int hgca_put_token(const hgca_layer *layer, const hgca_attention *window, int64_t row, const float *key, const float *value);

/* The attention of tokens of each of `count` sequences, whose rows are put: what its reading says is attended to.
 *   query [tokens of all][heads][dim];  out [tokens of all][heads][numbers of a value] */
int hgca_attend_readings(const hgca_layer *layer, const hgca_reading *const *readings, int32_t count, const float *query, float *out);

#endif
