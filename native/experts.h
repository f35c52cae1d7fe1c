/* The experts of some tokens, as hgca_experts has them. */
#ifndef HGCA_EXPERTS_H
#define HGCA_EXPERTS_H

#include "hgca.h"

typedef struct {
    const hgca_weights *first, *last;
    int32_t experts;
    const int64_t *chosen; /* [tokens][count] */
    const float *share;
    int32_t count;
    int32_t tokens;
    const float *in;
    float *out;
} hgca_experts_job;

/* Of many tokens, what was found to fit. */
int hgca_experts_many(const hgca_experts_job *job);

#endif
