/* A decoder layer of one token, before its attention and after it. */
#include <string.h>

#include "hgca.h"
#include "layer.h"
#include "pool.h"
#include "tickets.h"

int hgca_layer_fits(const hgca_layer *l) {
    const hgca_weights *query = &l->projection[0], *key = &l->projection[1], *value = &l->projection[2], *gate = &l->gated[0];
    if (l->heads < 1 || l->kv_heads < 1 || l->dim < 1 || l->rotated < 0 || l->rotated > l->dim || l->rotated % 2) return 0;
    for (int i = 0; i < 3; i++)
        if (l->projection[i].dtype != HGCA_F32 || (!l->mixture && l->gated[i].dtype != HGCA_F32)) return 0;
    if (l->mixture ? !hgca_mixture_fits(l->mixture, l->out.outputs)
                   : gate->inputs != l->out.outputs || l->gated[2].outputs != l->out.outputs)
        return 0;
    if (l->out.dtype != HGCA_F32 || !l->norm[0].weight || !l->norm[1].weight) return 0;
    return query->outputs == (int64_t)l->heads * l->dim && key->outputs == (int64_t)l->kv_heads * l->dim &&
           value->outputs % l->kv_heads == 0 && l->out.inputs == (int64_t)value->outputs / l->kv_heads * l->heads &&
           query->inputs == l->out.outputs;
}

int hgca_norm_rows(const hgca_norm *n, const float *in, int64_t rows, int64_t width, float *out) {
    return hgca_rms_norm((uintptr_t)in, (uintptr_t)n->weight, rows, width, n->eps, n->shift, (uintptr_t)out);
}

static void rotate(float *head, int64_t heads, int64_t dim, int64_t count, const float *cosine, const float *sine) {
    const int64_t half = count / 2;
    for (int64_t h = 0; h < heads; h++, head += dim)
        for (int64_t d = 0; d < half; d++) {
            const float a = head[d], b = head[d + half];
            head[d] = a * cosine[d] - b * sine[d];
            head[d + half] = b * cosine[d + half] + a * sine[d + half];
        }
}

int hgca_turn_heads(const hgca_layer *l, float *query, float *key, const float *cosine, const float *sine) {
    int status = HGCA_OK;
    for (int i = 0; i < 2 && !status; i++) {
        const int64_t heads = i ? l->kv_heads : l->heads;
        float *head = i ? key : query;
        if (l->head_norm[i].weight) status = hgca_norm_rows(&l->head_norm[i], head, heads, l->dim, head);
        if (!status) rotate(head, heads, l->dim, l->rotated, cosine, sine);
    }
    return status;
}

int hgca_before_attention(const hgca_layer *l, uintptr_t in, uintptr_t cosine, uintptr_t sine, uintptr_t out) {
    if (!l || !in || !out || !hgca_layer_fits(l) || (l->rotated && (!cosine || !sine))) return HGCA_BAD_ARGUMENT;
    const int64_t width = l->projection[0].inputs;
    float *normed = hgca_take_memory(sizeof *normed * (size_t)width);
    if (normed == NULL) return HGCA_NO_MEMORY;
    int status = hgca_norm_rows(&l->norm[0], (const float *)in, 1, width, normed);
    if (!status) status = hgca_linear(l->projection, 3, (uintptr_t)normed, out);
    hgca_give_memory(normed);
    float *query = (float *)out;
    return status ? status : hgca_turn_heads(l, query, query + l->projection[0].outputs, (const float *)cosine, (const float *)sine);
}

int hgca_after_attention(const hgca_layer *l, uintptr_t in, uintptr_t attention, uintptr_t out) {
    if (!l || !in || !attention || !out || !hgca_layer_fits(l)) return HGCA_BAD_ARGUMENT;
    const int64_t width = l->out.outputs;
    hgca_layout own = {hgca_take_memory(2 * (sizeof(float) * (size_t)width + 64)), 0};
    if (own.base == NULL) return HGCA_NO_MEMORY;
    float *whole = hgca_take(&own, sizeof(float) * (size_t)width), *normed = hgca_take(&own, sizeof(float) * (size_t)width);
    float *to = (float *)out;
    int status = hgca_linear(&l->out, 1, attention, (uintptr_t)whole);
    if (!status) hgca_add((const float *)in, whole, whole, width);
    if (!status) status = hgca_norm_rows(&l->norm[1], whole, 1, width, normed);
    if (!status && l->mixture) status = hgca_mixed(l->mixture, 1, (uintptr_t)normed, out);
    else if (!status) status = hgca_gated(l->gated, (uintptr_t)normed, out);
    if (!status) hgca_add(whole, to, to, width);
    hgca_give_memory(own.base);
    return status;
}

int hgca_reading_fits(const hgca_layer *l, const hgca_reading *r) {
    if (!r || !r->window) return 0;
    const hgca_attention *rows[2] = {r->window, &r->near};
    for (int i = 0; i < 2; i++)
        if (rows[i]->kv_heads != l->kv_heads || rows[i]->key_dim != l->dim || rows[i]->value_dim != l->projection[2].outputs / l->kv_heads)
            return 0;
    return 1;
}

int hgca_decode_layer(const hgca_layer *l, const hgca_reading *r, uintptr_t in, uintptr_t cosine, uintptr_t sine, uintptr_t out) {
    if (!l || !hgca_layer_fits(l) || !hgca_reading_fits(l, r) || r->tokens != 1) return HGCA_BAD_ARGUMENT;
    const int64_t queries = l->projection[0].outputs, keys = l->projection[1].outputs, values = l->projection[2].outputs;
    hgca_layout own = {hgca_take_memory(sizeof(float) * (size_t)(queries + keys + values + l->out.inputs) + 2 * 64), 0};
    if (own.base == NULL) return HGCA_NO_MEMORY;
    float *query = hgca_take(&own, sizeof(float) * (size_t)(queries + keys + values));
    float *attended = hgca_take(&own, sizeof(float) * (size_t)l->out.inputs);
    int status = hgca_before_attention(l, in, cosine, sine, (uintptr_t)query);
    if (!status) status = hgca_put_token(l, r->window, r->row, query + queries, query + queries + keys);
    if (!status) status = hgca_attend_readings(l, &r, 1, query, attended);
    if (!status) status = hgca_after_attention(l, in, (uintptr_t)attended, out);
    hgca_give_memory(own.base);
    return status;
}

int hgca_decode_layers(const hgca_layer *const *layers, const hgca_reading *const *readings, int32_t count, uintptr_t in,
                       uintptr_t cosine, uintptr_t sine, uintptr_t out) {
    if (!layers || !readings || count < 1) return HGCA_BAD_ARGUMENT;
    for (int32_t i = 0; i < count; i++) /* all of them first: none puts a row if one cannot */
        if (!layers[i] || !hgca_layer_fits(layers[i]) || !hgca_reading_fits(layers[i], readings[i]) || readings[i]->tokens != 1 ||
            layers[i]->out.outputs != layers[0]->out.outputs)
            return HGCA_BAD_ARGUMENT;
    int status = HGCA_OK;
    for (int32_t i = 0; i < count && !status; i++)
        status = hgca_decode_layer(layers[i], readings[i], i ? out : in, cosine, sine, out); /* `in` is read before `out` is written */
    return status;
}
