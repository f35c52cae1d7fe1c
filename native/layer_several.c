/* A decoder layer of a token of each of several sequences. */
#include <string.h>

#include "hgca.h"
#include "layer.h"
#include "linear.h"
#include "pool.h"
#include "tickets.h"

/* Jobs of a layer: of sequences whose rows are chosen, and of those that read all. */
typedef struct {
    hgca_selection *chosen;
    hgca_attention *near; /* what the choices name */
    hgca_attention *all;
    int32_t choices;
    int32_t others;
} jobs;

static void add_job(jobs *j, const hgca_reading *r, const hgca_attention *near, float *more) {
    if (r->chosen) {
        hgca_selection *own = &j->chosen[j->choices];
        *own = *r->chosen;
        own->rows.query = near->query, own->rows.out = near->out, own->rows.lse = near->lse;
        own->rows.scale = near->scale, own->rows.softcap = near->softcap;
        j->near[j->choices] = *near;
        own->near = &j->near[j->choices++];
        return;
    }
    j->all[j->others++] = *near;
    if (r->far.rows <= 0) return;
    hgca_attention *far = &j->all[j->others++];
    *far = r->far;
    far->query = near->query, far->out = more, far->lse = more + (int64_t)near->heads * near->value_dim;
    far->heads = near->heads, far->tokens = 1, far->joins = 1, far->scale = near->scale, far->softcap = near->softcap;
}

static int run_jobs(const jobs *j) {
    int64_t ticket[2];
    int status = j->choices ? hgca_start_selected(j->chosen, j->choices, &ticket[0]) : HGCA_OK;
    if (status) return status;
    status = j->others ? hgca_start(j->all, j->others, &ticket[1]) : HGCA_OK;
    const int waited = j->choices ? hgca_wait(ticket[0]) : HGCA_OK;
    if (status) return status;
    status = j->others ? hgca_wait(ticket[1]) : HGCA_OK;
    return status ? status : waited;
}

int hgca_attend_readings(const hgca_layer *l, const hgca_reading *const *r, int32_t count, const float *query, const float *key,
                         const float *value, float *out) {
    const int64_t width = l->projection[2].outputs / l->kv_heads, queries = l->projection[0].outputs, attended = l->out.inputs;
    const int64_t keys = l->projection[1].outputs, values = l->projection[2].outputs;
    const size_t n = (size_t)count, partial = sizeof(float) * (size_t)(attended + l->heads);
    hgca_layout own = {NULL, 0};
    jobs j = {0};
    float *lse = NULL, *more = NULL;
    for (int pass = 0; pass < 2; pass++) {
        if (pass && (own = (hgca_layout){hgca_take_memory(own.used), 0}).base == NULL) return HGCA_NO_MEMORY;
        j.chosen = hgca_take(&own, n * sizeof *j.chosen), j.near = hgca_take(&own, n * sizeof *j.near);
        j.all = hgca_take(&own, 2 * n * sizeof *j.all);
        lse = hgca_take(&own, n * sizeof(float) * (size_t)l->heads), more = hgca_take(&own, n * partial);
    }
    int status = HGCA_OK;
    for (int32_t i = 0; i < count && !status; i++) {
        status = hgca_put_row(r[i]->window, r[i]->row, HGCA_F32, (uintptr_t)(key + i * keys), 4 * (int64_t)l->dim,
                              (uintptr_t)(value + i * values), 4 * width);
        hgca_attention near = r[i]->near;
        near.query = query + i * queries, near.out = out + i * attended, near.lse = lse + (int64_t)i * l->heads;
        near.heads = l->heads, near.tokens = 1, near.joins = 0, near.scale = r[i]->scale, near.softcap = r[i]->softcap;
        add_job(&j, r[i], &near, more + i * (attended + l->heads));
        if (r[i]->query) memcpy(r[i]->query, near.query, sizeof(float) * (size_t)queries);
    }
    const int64_t began = hgca_now();
    if (!status) status = run_jobs(&j);
    const int64_t each = (hgca_now() - began) / count;
    for (int32_t i = 0; i < count; i++)
        if (r[i]->took) *r[i]->took = each;
    hgca_give_memory(own.base);
    return status;
}

static int after(const hgca_layer *l, int32_t count, const float *in, const float *attended, float *whole, float *normed, float *hidden,
                 float *out) {
    const int64_t width = l->out.outputs, between = (int64_t)count * l->gated[0].outputs;
    int status = hgca_linear_several(&l->out, 1, count, (uintptr_t)attended, (uintptr_t)whole);
    if (status) return status;
    hgca_add(in, whole, whole, count * width);
    status = hgca_norm_rows(&l->norm[1], whole, count, width, normed);
    if (!status) status = hgca_linear_several(l->gated, 2, count, (uintptr_t)normed, (uintptr_t)hidden);
    if (status) return status;
    hgca_linear_kernels()->gate(hidden, hidden + between, between);
    status = hgca_linear_several(&l->gated[2], 1, count, (uintptr_t)hidden, (uintptr_t)out);
    if (!status) hgca_add(whole, out, out, count * width);
    return status;
}

int hgca_decode_layer_several(const hgca_layer *l, const hgca_reading *const *r, int32_t count, uintptr_t in, uintptr_t cosine,
                              uintptr_t sine, uintptr_t out) {
    if (!l || !r || count < 1 || !in || !out || !hgca_layer_fits(l) || (l->rotated && (!cosine || !sine))) return HGCA_BAD_ARGUMENT;
    if (l->gated[0].outputs != l->gated[1].outputs || l->gated[0].outputs != l->gated[2].inputs) return HGCA_BAD_ARGUMENT;
    for (int32_t i = 0; i < count; i++)
        if (!hgca_reading_fits(l, r[i])) return HGCA_BAD_ARGUMENT;
    const int64_t queries = l->projection[0].outputs, keys = l->projection[1].outputs, values = l->projection[2].outputs;
    const size_t width = sizeof(float) * (size_t)l->out.outputs * (size_t)count, each = sizeof(float) * (size_t)count;
    hgca_layout own = {NULL, 0};
    float *normed = NULL, *whole = NULL, *query = NULL, *attended = NULL, *hidden = NULL;
    for (int pass = 0; pass < 2; pass++) {
        if (pass && (own = (hgca_layout){hgca_take_memory(own.used), 0}).base == NULL) return HGCA_NO_MEMORY;
        normed = hgca_take(&own, width), whole = hgca_take(&own, width);
        query = hgca_take(&own, each * (size_t)(queries + keys + values));
        attended = hgca_take(&own, each * (size_t)l->out.inputs);
        hidden = hgca_take(&own, 2 * each * (size_t)l->gated[0].outputs);
    }
    float *key = query + count * queries, *value = key + count * keys;
    int status = hgca_norm_rows(&l->norm[0], (const float *)in, count, l->out.outputs, normed);
    if (!status) status = hgca_linear_several(l->projection, 3, count, (uintptr_t)normed, (uintptr_t)query);
    for (int32_t i = 0; i < count && !status; i++) {
        const int64_t angles = (int64_t)i * l->rotated;
        status = hgca_turn_heads(l, query + i * queries, key + i * keys, (const float *)cosine + angles, (const float *)sine + angles);
    }
    if (!status) status = hgca_attend_readings(l, r, count, query, key, value, attended);
    if (!status) status = after(l, count, (const float *)in, attended, whole, normed, hidden, (float *)out);
    hgca_give_memory(own.base);
    return status;
}
