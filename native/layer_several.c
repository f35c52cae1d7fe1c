/* A decoder layer of a token of each of several sequences, and of several tokens but for their attention. */
#include <stdatomic.h>
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

/* Of every layer a grid: vectors are placed in blocks of it. */
static int fits_several(const hgca_layer *l) {
    return hgca_layer_fits(l) && l->gated[0].outputs == l->gated[1].outputs && l->gated[0].outputs == l->gated[2].inputs;
}

/* What may take a thread microseconds is cut into pieces of so many tokens. */
enum { TOKENS = 8 };

typedef struct {
    hgca_batch batch; /* first: the pool hands it back */
    const hgca_layer *layer;
    float *query, *key;
    const float *cosine, *sine;
    int64_t tokens;
    _Atomic int status;
} turning;

static void run_turning(hgca_batch *batch, int32_t piece) {
    turning *t = (turning *)(void *)batch;
    const hgca_layer *l = t->layer;
    const int64_t first = (int64_t)piece * TOKENS, left = t->tokens - first, end = first + (left < TOKENS ? left : TOKENS);
    for (int64_t i = first; i < end; i++) {
        const int64_t angles = i * l->rotated;
        const int status = hgca_turn_heads(l, t->query + i * l->projection[0].outputs, t->key + i * l->projection[1].outputs,
                                           t->cosine + angles, t->sine + angles);
        if (status) t->status = status;
    }
}

static int before(const hgca_layer *l, int64_t tokens, int among_openmp, const float *in, const float *cosine, const float *sine,
                  float *query) {
    const hgca_around norm = {.norm = &l->norm[0], .among_openmp = among_openmp};
    const int status = hgca_linear_around(l->projection, 3, tokens, in, &norm, query);
    if (status) return status;
    turning t = {.layer = l, .query = query, .key = query + tokens * l->projection[0].outputs, .cosine = cosine, .sine = sine,
                 .tokens = tokens};
    t.batch.run = run_turning, t.batch.pieces = (int32_t)((tokens + TOKENS - 1) / TOKENS);
    hgca_pool_run(&t.batch, among_openmp);
    return t.status;
}

/* hidden: [2][tokens][numbers between the layers of the block] */
static int after(const hgca_layer *l, int64_t tokens, int among_openmp, const float *in, const float *attended, float *hidden, float *out) {
    const hgca_around add = {.onto = in, .among_openmp = among_openmp}, norm = {.norm = &l->norm[1], .among_openmp = among_openmp};
    const hgca_around gate = {.up = hidden + tokens * l->gated[0].outputs, .onto = out, .among_openmp = among_openmp};
    int status = hgca_linear_around(&l->out, 1, tokens, attended, &add, out);
    if (!status) status = hgca_linear_around(l->gated, 2, tokens, out, &norm, hidden);
    return status ? status : hgca_linear_around(&l->gated[2], 1, tokens, hidden, &gate, out);
}

static size_t hidden_bytes(const hgca_layer *l, int64_t tokens) { return 2 * sizeof(float) * (size_t)(tokens * l->gated[0].outputs); }

int hgca_before_attention_several(const hgca_layer *l, int64_t tokens, uintptr_t in, uintptr_t cosine, uintptr_t sine, uintptr_t out) {
    if (!l || tokens < 1 || !in || !out || !fits_several(l) || (l->rotated && (!cosine || !sine))) return HGCA_BAD_ARGUMENT;
    return before(l, tokens, 1, (const float *)in, (const float *)cosine, (const float *)sine, (float *)out);
}

int hgca_after_attention_several(const hgca_layer *l, int64_t tokens, uintptr_t in, uintptr_t attention, uintptr_t out) {
    if (!l || tokens < 1 || tokens > INT32_MAX || !in || !attention || !out || !fits_several(l)) return HGCA_BAD_ARGUMENT;
    float *hidden = hgca_take_memory(hidden_bytes(l, tokens));
    if (hidden == NULL) return HGCA_NO_MEMORY;
    const int status = after(l, tokens, 1, (const float *)in, (const float *)attention, hidden, (float *)out);
    hgca_give_memory(hidden);
    return status;
}

int hgca_decode_layer_several(const hgca_layer *l, const hgca_reading *const *r, int32_t count, uintptr_t in, uintptr_t cosine,
                              uintptr_t sine, uintptr_t out) {
    if (!l || !r || count < 1 || !in || !out || !fits_several(l) || (l->rotated && (!cosine || !sine))) return HGCA_BAD_ARGUMENT;
    for (int32_t i = 0; i < count; i++)
        if (!hgca_reading_fits(l, r[i])) return HGCA_BAD_ARGUMENT;
    const int64_t queries = l->projection[0].outputs, keys = l->projection[1].outputs, values = l->projection[2].outputs;
    const size_t each = sizeof(float) * (size_t)count;
    hgca_layout own = {NULL, 0};
    float *query = NULL, *attended = NULL, *hidden = NULL;
    for (int pass = 0; pass < 2; pass++) {
        if (pass && (own = (hgca_layout){hgca_take_memory(own.used), 0}).base == NULL) return HGCA_NO_MEMORY;
        query = hgca_take(&own, each * (size_t)(queries + keys + values));
        attended = hgca_take(&own, each * (size_t)l->out.inputs);
        hidden = hgca_take(&own, hidden_bytes(l, count));
    }
    const float *key = query + count * queries, *value = key + count * keys;
    int status = before(l, count, 0, (const float *)in, (const float *)cosine, (const float *)sine, query);
    if (!status) status = hgca_attend_readings(l, r, count, query, key, value, attended);
    if (!status) status = after(l, count, 0, (const float *)in, attended, hidden, (float *)out);
    hgca_give_memory(own.base);
    return status;
}
