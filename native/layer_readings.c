/* The attention of tokens of each of several sequences: what they read becomes jobs. */
#include <math.h>
#include <string.h>

#include "hgca.h"
#include "layer.h"
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

/* Tokens of a sequence one behind the other are attended to by so many: each such job reads rows up to its last one's. */
enum { TOKENS_A_JOB = 32 };

static int64_t jobs_of(const hgca_reading *r) { return r->tokens == 1 ? 2 : (r->tokens + TOKENS_A_JOB - 1) / TOKENS_A_JOB; }

/* Tokens of one sequence, from reading i on, that read all of its store: it is read once for all of them. */
static int32_t reading_alike(const hgca_reading *const *r, int32_t i, int32_t count) {
    int32_t n = 1;
    if (r[i]->tokens != 1 || r[i]->chosen || r[i]->far.rows <= 0) return n;
    while (i + n < count && r[i + n]->tokens == 1 && !r[i + n]->chosen && r[i + n]->window == r[i]->window &&
           r[i + n]->far.key == r[i]->far.key && r[i + n]->far.rows == r[i]->far.rows)
        n++;
    return n;
}

/* What `tokens` queries one behind the other find in all rows of a store: out [tokens][heads][numbers of a value], then lse. */
static hgca_attention far_of(const hgca_reading *r, const hgca_attention *near, int32_t tokens, float *out) {
    hgca_attention far = r->far;
    far.query = near->query, far.heads = near->heads, far.scale = near->scale, far.softcap = near->softcap;
    far.tokens = tokens, far.out = out, far.lse = out + (int64_t)tokens * near->heads * near->value_dim;
    return far;
}

/* out and lse of `queries` become those over the rows of both; the other's are over some rows. */
static void merge(float *out, float *lse, const float *others, const float *others_lse, int64_t queries, int64_t width) {
    for (int64_t q = 0; q < queries; q++, out += width, others += width) {
        const float top = fmaxf(lse[q], others_lse[q]), own = expf(lse[q] - top), theirs = expf(others_lse[q] - top);
        const float own_share = own / (own + theirs), their_share = theirs / (own + theirs);
        for (int64_t d = 0; d < width; d++) out[d] = own_share * out[d] + their_share * others[d];
        lse[q] = top + logf(own + theirs);
    }
}

/* more: memory for what a second job of a token gives. */
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
    *far = far_of(r, near, 1, more), far->joins = 1;
}

static void add_tokens(jobs *j, const hgca_attention *near) {
    for (int32_t first = 0; first < near->tokens; first += TOKENS_A_JOB) {
        const int32_t left = near->tokens - first, count = left < TOKENS_A_JOB ? left : TOKENS_A_JOB;
        const int64_t head = (int64_t)first * near->heads;
        hgca_attention *some = &j->all[j->others++];
        *some = *near;
        some->tokens = count, some->causal = 1, some->rows = near->rows - left + count;
        some->query += head * near->key_dim, some->out += head * near->value_dim, some->lse += head;
    }
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

int hgca_attend_readings(const hgca_layer *l, const hgca_reading *const *r, int32_t count, const float *query, float *out) {
    const int64_t queries = l->projection[0].outputs, attended = l->out.inputs;
    const size_t n = (size_t)count, partial = sizeof(float) * (size_t)(attended + l->heads);
    int64_t vectors = 0, most = 0;
    for (int32_t i = 0; i < count; i++) vectors += r[i]->tokens, most += jobs_of(r[i]);
    hgca_layout own = {NULL, 0};
    jobs j = {0};
    float *lse = NULL, *more = NULL;
    for (int pass = 0; pass < 2; pass++) {
        if (pass && (own = (hgca_layout){hgca_take_memory(own.used), 0}).base == NULL) return HGCA_NO_MEMORY;
        j.chosen = hgca_take(&own, n * sizeof *j.chosen), j.near = hgca_take(&own, n * sizeof *j.near);
        j.all = hgca_take(&own, (size_t)most * sizeof *j.all);
        lse = hgca_take(&own, (size_t)vectors * sizeof(float) * (size_t)l->heads), more = hgca_take(&own, n * partial);
    }
    const int64_t each_more = attended + l->heads;
    int64_t at = 0;
    for (int32_t i = 0, alike; i < count; i += alike) {
        alike = reading_alike(r, i, count);
        for (int32_t k = i; k < i + alike; at += r[k++]->tokens) {
            hgca_attention near = r[k]->near;
            near.query = query + at * queries, near.out = out + at * attended, near.lse = lse + at * l->heads;
            near.heads = l->heads, near.tokens = r[k]->tokens, near.joins = 0, near.scale = r[k]->scale, near.softcap = r[k]->softcap;
            if (near.tokens > 1) add_tokens(&j, &near);
            else if (alike == 1) add_job(&j, r[k], &near, more + i * each_more);
            else {
                if (k == i) j.all[j.others++] = far_of(r[i], &near, alike, more + i * each_more);
                j.all[j.others++] = near;
            }
            if (r[k]->query) memcpy(r[k]->query, near.query, sizeof(float) * (size_t)queries);
        }
    }
    const int64_t began = hgca_now();
    const int status = run_jobs(&j);
    at = 0;
    for (int32_t i = 0, alike; !status && i < count; i += alike) {
        alike = reading_alike(r, i, count);
        const float *far = more + i * each_more;
        if (alike > 1)
            merge(out + at * attended, lse + at * l->heads, far, far + alike * attended, (int64_t)alike * l->heads, attended / l->heads);
        for (int32_t k = i; k < i + alike; k++) at += r[k]->tokens;
    }
    const int64_t each = (hgca_now() - began) / vectors;
    for (int32_t i = 0; i < count; i++)
        if (r[i]->took) *r[i]->took = each * r[i]->tokens;
    hgca_give_memory(own.base);
    return status;
}
