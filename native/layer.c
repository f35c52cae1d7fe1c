/* A decoder layer of one token, before its attention and after it. */
#include <string.h>

#include "hgca.h"
#include "pool.h"
#include "tickets.h"

/* What has to fit together; hgca_linear and hgca_gated look at the rest. */
static int fits(const hgca_layer *l) {
    const hgca_weights *query = &l->projection[0], *key = &l->projection[1], *value = &l->projection[2], *gate = &l->gated[0];
    if (l->heads < 1 || l->kv_heads < 1 || l->dim < 1 || l->rotated < 0 || l->rotated > l->dim || l->rotated % 2) return 0;
    for (int i = 0; i < 3; i++)
        if (l->projection[i].dtype != HGCA_F32 || l->gated[i].dtype != HGCA_F32) return 0;
    if (l->out.dtype != HGCA_F32 || !l->norm[0].weight || !l->norm[1].weight) return 0;
    return query->outputs == (int64_t)l->heads * l->dim && key->outputs == (int64_t)l->kv_heads * l->dim &&
           value->outputs % l->kv_heads == 0 && l->out.inputs == (int64_t)value->outputs / l->kv_heads * l->heads &&
           query->inputs == l->out.outputs && gate->inputs == l->out.outputs && l->gated[2].outputs == l->out.outputs;
}

static int norm(const hgca_norm *n, const float *in, int64_t rows, int64_t width, float *out) {
    return hgca_rms_norm((uintptr_t)in, (uintptr_t)n->weight, rows, width, n->eps, n->shift, (uintptr_t)out);
}

/* The first `count` numbers of each head as pairs, number d and number d + count / 2, turned by an angle each. */
static void rotate(float *head, int64_t heads, int64_t dim, int64_t count, const float *cosine, const float *sine) {
    const int64_t half = count / 2;
    for (int64_t h = 0; h < heads; h++, head += dim)
        for (int64_t d = 0; d < half; d++) {
            const float a = head[d], b = head[d + half];
            head[d] = a * cosine[d] - b * sine[d];
            head[d + half] = b * cosine[d + half] + a * sine[d + half];
        }
}

int hgca_before_attention(const hgca_layer *l, uintptr_t in, uintptr_t cosine, uintptr_t sine, uintptr_t out) {
    if (!l || !in || !out || !fits(l) || (l->rotated && (!cosine || !sine))) return HGCA_BAD_ARGUMENT;
    const int64_t width = l->projection[0].inputs;
    float *normed = hgca_take_memory(sizeof *normed * (size_t)width);
    if (normed == NULL) return HGCA_NO_MEMORY;
    int status = norm(&l->norm[0], (const float *)in, 1, width, normed);
    if (!status) status = hgca_linear(l->projection, 3, (uintptr_t)normed, out);
    hgca_give_memory(normed);
    float *head = (float *)out;
    for (int i = 0; i < 2 && !status; i++) {
        const int64_t heads = i ? l->kv_heads : l->heads;
        if (l->head_norm[i].weight) status = norm(&l->head_norm[i], head, heads, l->dim, head);
        if (!status) rotate(head, heads, l->dim, l->rotated, (const float *)cosine, (const float *)sine);
        head += heads * l->dim;
    }
    return status;
}

int hgca_after_attention(const hgca_layer *l, uintptr_t in, uintptr_t attention, uintptr_t out) {
    if (!l || !in || !attention || !out || !fits(l)) return HGCA_BAD_ARGUMENT;
    const int64_t width = l->out.outputs;
    hgca_layout own = {hgca_take_memory(2 * (sizeof(float) * (size_t)width + 64)), 0};
    if (own.base == NULL) return HGCA_NO_MEMORY;
    float *whole = hgca_take(&own, sizeof(float) * (size_t)width), *normed = hgca_take(&own, sizeof(float) * (size_t)width);
    float *to = (float *)out;
    int status = hgca_linear(&l->out, 1, attention, (uintptr_t)whole);
    for (int64_t d = 0; d < width && !status; d++) whole[d] = ((const float *)in)[d] + whole[d];
    if (!status) status = norm(&l->norm[1], whole, 1, width, normed);
    if (!status) status = hgca_gated(l->gated, (uintptr_t)normed, out);
    for (int64_t d = 0; d < width && !status; d++) to[d] = whole[d] + to[d];
    hgca_give_memory(own.base);
    return status;
}

static int attend_near(hgca_attention *near, const hgca_attention *far, float *more) {
    hgca_attention jobs[2] = {*near, *far};
    jobs[1].query = near->query, jobs[1].out = more, jobs[1].lse = more + (int64_t)near->heads * near->value_dim;
    jobs[1].heads = near->heads, jobs[1].tokens = 1, jobs[1].joins = 1, jobs[1].scale = near->scale, jobs[1].softcap = near->softcap;
    int64_t ticket;
    const int status = hgca_start(jobs, far->rows > 0 ? 2 : 1, &ticket);
    return status ? status : hgca_wait(ticket);
}

static int attend_chosen(const hgca_attention *near, const hgca_selection *chosen) {
    hgca_selection own = *chosen;
    own.rows.query = near->query, own.rows.out = near->out, own.rows.lse = near->lse;
    own.rows.scale = near->scale, own.rows.softcap = near->softcap;
    own.near = near;
    int64_t ticket;
    const int status = hgca_start_selected(&own, 1, &ticket);
    return status ? status : hgca_wait(ticket);
}

int hgca_decode_layer(const hgca_layer *l, const hgca_reading *r, uintptr_t in, uintptr_t cosine, uintptr_t sine, uintptr_t out) {
    if (!l || !r || !r->window || !fits(l)) return HGCA_BAD_ARGUMENT;
    const int64_t queries = l->projection[0].outputs, keys = l->projection[1].outputs, values = l->projection[2].outputs;
    const hgca_attention *rows[2] = {r->window, &r->near};
    for (int i = 0; i < 2; i++)
        if (rows[i]->kv_heads != l->kv_heads || rows[i]->key_dim != l->dim || rows[i]->value_dim != values / l->kv_heads)
            return HGCA_BAD_ARGUMENT;
    const size_t attended = (size_t)(l->out.inputs + l->heads); /* and log-sum-exps */
    hgca_layout own = {hgca_take_memory(sizeof(float) * ((size_t)(queries + keys + values) + 2 * attended) + 3 * 64), 0};
    if (own.base == NULL) return HGCA_NO_MEMORY;
    float *query = hgca_take(&own, sizeof(float) * (size_t)(queries + keys + values));
    float *whole = hgca_take(&own, sizeof(float) * attended), *more = hgca_take(&own, sizeof(float) * attended);
    const float *key = query + queries, *value = key + keys;
    int status = hgca_before_attention(l, in, cosine, sine, (uintptr_t)query);
    if (!status)
        status = hgca_put_row(r->window, r->row, HGCA_F32, (uintptr_t)key, 4 * (int64_t)l->dim, (uintptr_t)value, 4 * (values / l->kv_heads));
    hgca_attention near = r->near;
    near.query = query, near.out = whole, near.lse = whole + l->out.inputs;
    near.heads = l->heads, near.tokens = 1, near.joins = 0, near.scale = r->scale, near.softcap = r->softcap;
    int64_t *took = r->took;
    const int64_t began = took ? hgca_now() : 0;
    if (!status) status = r->chosen ? attend_chosen(&near, r->chosen) : attend_near(&near, &r->far, more);
    if (took) *took = hgca_now() - began;
    if (!status && r->query) memcpy(r->query, query, sizeof(float) * (size_t)queries);
    if (!status) status = hgca_after_attention(l, in, (uintptr_t)whole, out);
    hgca_give_memory(own.base);
    return status;
}
