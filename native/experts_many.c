/* Experts of many tokens: each is read once for up to 64 vectors, by one thread, from their gate to what they are scaled by. */
#include <stdatomic.h>
#include <string.h>

#include "experts.h"
#include "hgca.h"
#include "linear_one.h"
#include "pool.h"
#include "tickets.h"

/* Numbers of results that wait to be added up: tokens beyond are taken in turns. A piece has fewer vectors where there were too few pieces
 * for all threads. */
enum { AT_ONCE = 1 << 24, PIECES = 3, FEWEST = 16, TOKENS = 8 };

/* The vectors first .. first + count - 1 of those in order, all with one expert. */
typedef struct {
    int64_t expert;
    int32_t first, count;
} chunk;

typedef struct {
    hgca_batch batch; /* first: the pool hands it back */
    const hgca_experts_job *job;
    const int32_t *by_expert; /* [pairs] */
    const int32_t *place;     /* [tokens][count] */
    chunk *chunks;
    float *each; /* [pairs][outputs], by expert */
    _Atomic int status;
} many;

/* All rows of a layer with some vectors: `in` [vectors][inputs] floats, or numbers on a grid. */
static void multiply(const hgca_weights *w, const float *in, const hgca_numbers *numbers, int64_t vectors, float *out) {
    const hgca_isa_linear *kernels = hgca_linear_kernels();
    const int grid = w->kind >= HGCA_GRID8;
    const hgca_several_rows rows = {.weight = w->weight, .rows = w->outputs, .inputs = w->inputs,
                                    .row_bytes = grid ? hgca_grid_row_bytes(w) : w->row_bytes, .numbers = numbers, .in = in,
                                    .vectors = vectors, .bias = w->bias, .out = out, .out_stride = w->outputs};
    if (grid && vectors <= kernels->few_vectors) kernels->few[w->kind - HGCA_GRID8](&rows);
    else kernels->several[w->kind](&rows);
}

/* One of several vectors, where `multiply` wants it. */
static void put(const hgca_weights *w, const float *from, int64_t vector, int64_t vectors, float *in, hgca_numbers *numbers) {
    const hgca_isa_linear *kernels = hgca_linear_kernels();
    if (w->kind < HGCA_GRID8) memmove(in + vector * w->inputs, from, sizeof *in * (size_t)w->inputs);
    else if (vectors <= kernels->few_vectors) kernels->place_few(from, w->inputs, numbers + vector, vectors);
    else kernels->place_several(from, w->inputs, numbers + vector, vectors);
}

static void *take_vectors(const hgca_weights *w, int64_t vectors, hgca_layout *own) {
    const size_t numbers = (size_t)(vectors * w->inputs);
    return hgca_take(own, w->kind >= HGCA_GRID8 ? sizeof(hgca_numbers) * (numbers / HGCA_GRID_BLOCK) : sizeof(float) * numbers);
}

static void run_chunk(hgca_batch *batch, int32_t piece) {
    many *all = (many *)(void *)batch;
    const hgca_experts_job *job = all->job;
    const chunk *c = &all->chunks[piece];
    const hgca_weights *first = &job->first[c->expert], *last = &job->last[c->expert];
    const int64_t vectors = c->count, width = last->inputs, outputs = last->outputs;
    hgca_layout own = {NULL, 0};
    void *in = NULL, *hidden = NULL;
    float *both = NULL;
    for (int pass = 0; pass < 2; pass++) {
        if (pass && (own = (hgca_layout){hgca_take_memory(own.used), 0}).base == NULL) {
            all->status = HGCA_NO_MEMORY;
            return;
        }
        in = take_vectors(first, vectors, &own), hidden = take_vectors(last, vectors, &own);
        both = hgca_take(&own, sizeof(float) * (size_t)(2 * width * vectors));
    }
    const int32_t *pairs = all->by_expert + c->first;
    for (int64_t v = 0; v < vectors; v++) put(first, job->in + pairs[v] / job->count * (int64_t)first->inputs, v, vectors, in, in);
    multiply(first, in, in, vectors, both);
    for (int64_t v = 0; v < vectors; v++) {
        float *gate = both + v * 2 * width;
        hgca_linear_kernels()->gate(gate, gate + width, width);
        put(last, gate, v, vectors, hidden, hidden);
    }
    float *out = all->each + c->first * outputs;
    multiply(last, hidden, hidden, vectors, out);
    for (int64_t v = 0; v < vectors; v++)
        for (int64_t i = 0; i < outputs; i++) out[v * outputs + i] *= job->share[pairs[v]];
    hgca_give_memory(own.base);
}

static void run_sums(hgca_batch *batch, int32_t piece) {
    const many *all = (const many *)(const void *)batch;
    const hgca_experts_job *job = all->job;
    const int64_t outputs = job->last[job->chosen[0]].outputs;
    const int32_t first = piece * TOKENS, end = first + TOKENS < job->tokens ? first + TOKENS : job->tokens;
    for (int32_t t = first; t < end; t++)
        for (int32_t c = 0; c < job->count; c++) {
            const float *one = all->each + all->place[t * job->count + c] * outputs;
            float *out = job->out + t * outputs;
            if (!c) memcpy(out, one, sizeof *out * (size_t)outputs);
            else
                for (int64_t i = 0; i < outputs; i++) out[i] += one[i];
        }
}

/* Pairs in the order of their experts, those of one as they come; returns how many chunks they are, which are written if there is a place. */
static int32_t order(const hgca_experts_job *job, int32_t pairs, int64_t most, int32_t *starts, int32_t *by_expert, int32_t *place,
                     chunk *chunks) {
    int32_t count = 0;
    memset(starts, 0, sizeof *starts * (size_t)(job->experts + 1));
    for (int32_t i = 0; i < pairs; i++) starts[job->chosen[i] + 1]++;
    for (int32_t e = 0; e < job->experts; e++) starts[e + 1] += starts[e];
    for (int32_t e = 0; e < job->experts; e++)
        for (int32_t at = starts[e]; at < starts[e + 1]; at += (int32_t)most, count++)
            if (chunks) chunks[count] = (chunk){e, at, starts[e + 1] - at < most ? starts[e + 1] - at : (int32_t)most};
    for (int32_t i = 0; chunks && i < pairs; i++) place[i] = starts[job->chosen[i]]++, by_expert[place[i]] = i;
    return count;
}

static int run_some(const hgca_experts_job *job) {
    const int32_t pairs = job->tokens * job->count, wanted = PIECES * hgca_threads();
    const int64_t outputs = job->last[job->chosen[0]].outputs;
    hgca_layout own = {NULL, 0};
    many all = {.job = job};
    int32_t *starts = NULL, *by_expert = NULL, *place = NULL;
    for (int pass = 0; pass < 2; pass++) {
        if (pass && (own = (hgca_layout){hgca_take_memory(own.used), 0}).base == NULL) return HGCA_NO_MEMORY;
        starts = hgca_take(&own, sizeof *starts * (size_t)(job->experts + 1));
        by_expert = hgca_take(&own, sizeof *by_expert * (size_t)pairs), place = hgca_take(&own, sizeof *place * (size_t)pairs);
        all.chunks = hgca_take(&own, sizeof *all.chunks * (size_t)pairs);
        all.each = hgca_take(&own, sizeof *all.each * (size_t)(pairs * outputs));
    }
    int64_t most = HGCA_SEVERAL;
    while (most > FEWEST && order(job, pairs, most, starts, by_expert, place, NULL) < wanted) most /= 2;
    all.by_expert = by_expert, all.place = place;
    all.batch.run = run_chunk, all.batch.pieces = order(job, pairs, most, starts, by_expert, place, all.chunks);
    hgca_pool_run(&all.batch, 1);
    if (all.status == HGCA_OK) {
        memset(&all.batch, 0, sizeof all.batch);
        all.batch.run = run_sums, all.batch.pieces = (job->tokens + TOKENS - 1) / TOKENS;
        hgca_pool_run(&all.batch, 1);
    }
    hgca_give_memory(own.base);
    return all.status;
}

int hgca_experts_many(const hgca_experts_job *job) {
    const int64_t outputs = job->last[job->chosen[0]].outputs, inputs = job->first[job->chosen[0]].inputs;
    const int64_t some = AT_ONCE / (outputs * job->count), most = some < 1 ? 1 : some;
    int status = HGCA_OK;
    for (int64_t first = 0; first < job->tokens && !status; first += most) {
        hgca_experts_job part = *job;
        part.tokens = (int32_t)(job->tokens - first < most ? job->tokens - first : most);
        part.chosen += first * job->count, part.share += first * job->count;
        part.in += first * inputs, part.out += first * outputs;
        status = run_some(&part);
    }
    return status;
}
