/* hgca_experts against hgca_gated (which check_linear.c holds to double precision): every kind of weights, tokens that share experts. */
#include "check_experts.h"

#include <stdio.h>

#include "linear_layers.h"

enum { MOST_EXPERTS = 7, FEW = 5 };

/* One half of an expert's first layer, as a layer. */
static hgca_weights half(const hgca_weights *both, int from) {
    hgca_weights one = *both;
    one.outputs = both->outputs / 2;
    const int64_t bytes = both->kind >= HGCA_GRID8 ? both->inputs / BLOCK * hgca_row_bytes[both->kind] : both->row_bytes;
    one.weight = (const char *)both->weight + from * bytes;
    one.bias = both->bias ? (const float *)both->bias + from : NULL;
    return one;
}

static int check_one(int inputs, int width, int outputs, int kind, int last_kind, int experts, int count, int tokens, uint64_t *state) {
    layer first[MOST_EXPERTS], last[MOST_EXPERTS];
    hgca_weights w[MOST_EXPERTS], v[MOST_EXPERTS];
    for (int e = 0; e < experts; e++) {
        first[e] = make_layer(2 * width, inputs, kind, e % 2, state), last[e] = make_layer(outputs, width, last_kind, e % 3 == 0, state);
        w[e] = first[e].w, v[e] = last[e].w;
    }
    const size_t pairs = (size_t)(count * tokens);
    int64_t *chosen = must(malloc(sizeof *chosen * pairs));
    float *share = must(malloc(sizeof *share * pairs)), *in = must(malloc(sizeof *in * (size_t)(inputs * tokens)));
    float *out = must(malloc(sizeof *out * (size_t)(outputs * tokens))), *one = must(malloc(sizeof *one * (size_t)outputs));
    double *want = must(malloc(sizeof *want * (size_t)outputs)), *size = must(malloc(sizeof *size * (size_t)outputs));
    for (size_t i = 0; i < pairs; i++) chosen[i] = pick(state, experts), share[i] = (float)uniform(state);
    for (int i = 0; i < inputs * tokens; i++) in[i] = (float)uniform(state) / 8.0f;
    int status = hgca_experts(w, v, experts, chosen, share, count, tokens, (uintptr_t)in, (uintptr_t)out), failures = status != HGCA_OK;
    for (int t = 0; t < tokens && !failures; t++) {
        for (int r = 0; r < outputs; r++) want[r] = 0.0, size[r] = 1e-30;
        for (int c = 0; c < count; c++) {
            const int64_t e = chosen[t * count + c];
            const hgca_weights gated[] = {half(&w[e], 0), half(&w[e], width), v[e]};
            status = hgca_gated(gated, (uintptr_t)(in + t * inputs), (uintptr_t)one);
            failures += status != HGCA_OK;
            double square = 0.0; /* vectors of many tokens are rounded to 16 bits, of which a result near nothing may be all */
            for (int r = 0; r < outputs; r++) square += (double)one[r] * one[r] / outputs;
            for (int r = 0; r < outputs; r++) {
                const double term = (double)share[t * count + c] * one[r];
                want[r] += term, size[r] += fabs(term) + (tokens > 1 ? 1000.0 * fabs(share[t * count + c]) * sqrt(square) : 0.0);
            }
        }
        for (int r = 0; r < outputs; r++) failures += !(fabs(out[t * outputs + r] - want[r]) <= 1e-6 * size[r]);
    }
    if (failures)
        fprintf(stderr, "FAILED: %s experts: kinds %d and %d, %d x %d x %d, %d of %d for %d tokens, status %d\n", hgca_isa(), kind,
                last_kind, inputs, width, outputs, count, experts, tokens, status);
    for (int e = 0; e < experts; e++) drop_layer(&first[e]), drop_layer(&last[e]);
    free(chosen), free(share), free(in), free(out), free(one), free(want), free(size);
    return failures != 0;
}

int check_experts(void) {
    static const int width[] = {32, 96, 64, 320}, outputs[] = {1, 16, 33, 300, 70}, inputs[] = {32, 96, 33, 288, 7};
    uint64_t state = 99;
    int failures = 0;
    for (int turn = 0; turn < 60; turn++) {
        const int in = inputs[turn % 5], kind = in % BLOCK ? turn % 3 : turn / 5 % 6, experts = 1 + turn % MOST_EXPERTS;
        const int few = 1 + turn / 4 % 5, many = FEW + 1 + turn * 7 % 200, last = turn / 3 % 6;
        failures += check_one(in, width[turn % 4], outputs[turn / 2 % 5], kind, last, experts, 1 + turn % 4, few, &state);
        failures += check_one(in, width[turn % 4], outputs[1 + turn / 2 % 4], kind, last, experts, 1 + turn % 4, many, &state);
    }
    layer first = make_layer(64, 32, HGCA_GRID8, 0, &state), last = make_layer(16, 32, HGCA_F32, 0, &state);
    float numbers[32] = {0}, out[16];
    int64_t beyond = 1;
    hgca_weights narrow = first.w;
    narrow.outputs = 32;
    const uintptr_t at = (uintptr_t)numbers, to = (uintptr_t)out;
    failures += hgca_experts(&first.w, &last.w, 1, &beyond, numbers, 1, 1, at, to) != HGCA_BAD_ARGUMENT;
    beyond = 0;
    failures += hgca_experts(&narrow, &last.w, 1, &beyond, numbers, 1, 1, at, to) != HGCA_BAD_ARGUMENT;
    failures += hgca_experts(&first.w, &last.w, 1, &beyond, numbers, 0, 1, at, to) != HGCA_BAD_ARGUMENT;
    failures += hgca_experts(&first.w, &last.w, 1, &beyond, numbers, 1, 1, at, to) != HGCA_OK;
    drop_layer(&first), drop_layer(&last);
    return failures;
}
