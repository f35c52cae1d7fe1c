/* A router and the experts it chooses (hgca_mixed). */
#include <math.h>

#include "hgca.h"
#include "layer.h"
#include "linear.h"
#include "pool.h"
#include "tickets.h"

enum { TOKENS = 8 }; /* of a piece */

typedef struct {
    hgca_batch batch; /* first: the pool hands it back */
    const hgca_mixture *mixture;
    int32_t tokens;
    float *weights;  /* [tokens][experts]: logits, then exp(logit - largest), then -1 where taken */
    int64_t *chosen; /* [tokens][chosen] */
    float *share;
} choices;

int hgca_mixture_fits(const hgca_mixture *m, int32_t width) {
    return m->first && m->last && m->chosen >= 1 && m->chosen <= m->experts && hgca_weights_fit(&m->router) && m->router.dtype == HGCA_F32 &&
           m->router.outputs == m->experts && m->router.inputs == width && m->first[0].inputs == width && m->last[0].outputs == width;
}

static void choose(const hgca_mixture *m, float *weights, int64_t *chosen, float *share) {
    float largest = weights[0], all = 0.0f, taken = 0.0f;
    for (int32_t e = 1; e < m->experts; e++) largest = weights[e] > largest ? weights[e] : largest;
    for (int32_t e = 0; e < m->experts; e++) all += weights[e] = expf(weights[e] - largest);
    for (int32_t c = 0; c < m->chosen; c++) {
        int32_t best = -1;
        for (int32_t e = 0; e < m->experts; e++)
            if (weights[e] >= 0.0f && (best < 0 || weights[e] > weights[best])) best = e;
        if (best < 0) best = c; /* where none is a number any is the best */
        chosen[c] = best, share[c] = weights[best], taken += weights[best];
        weights[best] = -1.0f;
    }
    for (int32_t c = 0; c < m->chosen; c++) share[c] /= m->whole ? taken : all;
}

static void run_choices(hgca_batch *batch, int32_t piece) {
    const choices *all = (const choices *)(const void *)batch;
    const hgca_mixture *m = all->mixture;
    for (int64_t t = (int64_t)piece * TOKENS; t < all->tokens && t < (int64_t)(piece + 1) * TOKENS; t++)
        choose(m, all->weights + t * m->experts, all->chosen + t * m->chosen, all->share + t * m->chosen);
}

int hgca_mixed(const hgca_mixture *m, int32_t tokens, uintptr_t in, uintptr_t out) {
    if (!m || tokens < 1 || !in || !out || !hgca_mixture_fits(m, m->router.inputs)) return HGCA_BAD_ARGUMENT;
    choices all = {.batch = {.run = run_choices, .pieces = (tokens + TOKENS - 1) / TOKENS}, .mixture = m, .tokens = tokens};
    hgca_layout own = {NULL, 0};
    for (int pass = 0; pass < 2; pass++) {
        if (pass && (own = (hgca_layout){hgca_take_memory(own.used), 0}).base == NULL) return HGCA_NO_MEMORY;
        all.weights = hgca_take(&own, sizeof *all.weights * (size_t)tokens * (size_t)m->experts);
        all.share = hgca_take(&own, sizeof *all.share * (size_t)tokens * (size_t)m->chosen);
        all.chosen = hgca_take(&own, sizeof *all.chosen * (size_t)tokens * (size_t)m->chosen);
    }
    const uintptr_t to = (uintptr_t)all.weights;
    int status = tokens == 1 ? hgca_linear(&m->router, 1, in, to) : hgca_linear_several(&m->router, 1, tokens, in, to);
    if (!status && tokens <= TOKENS) run_choices(&all.batch, 0);
    else if (!status) hgca_pool_run(&all.batch, 1);
    if (!status) status = hgca_experts(m->first, m->last, m->experts, all.chosen, all.share, m->chosen, tokens, in, out);
    hgca_give_memory(own.base);
    return status;
}
