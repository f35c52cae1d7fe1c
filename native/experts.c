/* Experts of a token (hgca_experts), or of so few that each thread would have little to do: the gated blocks that a router chose for each of
 * them, in one job of the pool. */
#include "experts.h"
#include "hgca.h"
#include "linear_one.h"
#include "pool.h"
#include "tickets.h"

enum { MOST_PAIRS = 1 << 24, EACH = 4 };

/* A token and an expert it has. What an expert is read for comes one behind the other, so that it is in a cache for the second token. */
typedef struct {
    hgca_one gate, up, down;
} pair;

typedef struct {
    hgca_batch batch; /* first: the pool hands it back */
    pair *pairs;      /* by expert */
    const int32_t *place; /* [tokens][count]: where a token's are among them */
    const float *share;
    float *out;
    int32_t tokens, count;
    int32_t blocks; /* of a pair's hidden rows */
    hgca_pieces hidden, last; /* of all pairs' blocks; of rows of the result, and these come last */
    _Atomic int32_t left;     /* of the hidden ones */
} job;

static void run_hidden(const pair *p, int64_t first, int64_t most) {
    const int64_t rows = hgca_run_rows(&p->gate, first, most);
    float *hidden = p->gate.out + first;
    hgca_run_rows(&p->up, first, rows);
    hgca_linear_kernels()->gate(hidden, p->up.out + first, rows);
    hgca_place(&p->down, p->gate.out, first, rows);
}

static void run_last(const job *all, int64_t first, int64_t most) {
    const int64_t outputs = all->pairs[0].down.w.outputs, rows = most < outputs - first ? most : outputs - first;
    for (int32_t i = 0; i < all->tokens * all->count; i++) hgca_run_rows(&all->pairs[i].down, first, rows);
    for (int32_t t = 0; t < all->tokens; t++) {
        float *out = all->out + t * outputs + first;
        for (int32_t c = 0; c < all->count; c++) {
            const float *one = all->pairs[all->place[t * all->count + c]].down.out + first, share = all->share[t * all->count + c];
            for (int64_t r = 0; r < rows; r++) out[r] = (c ? out[r] : 0.0f) + share * one[r];
        }
    }
}

static void run(hgca_batch *batch, int32_t piece) {
    job *all = (job *)(void *)batch;
    if (piece >= all->hidden.count) {
        const int32_t *cut = &all->last.first[piece - all->hidden.count];
        hgca_await(&all->left);
        run_last(all, (int64_t)cut[0] * HGCA_GRID_BLOCK, (int64_t)(cut[1] - cut[0]) * HGCA_GRID_BLOCK);
        return;
    }
    for (int32_t at = all->hidden.first[piece], end = all->hidden.first[piece + 1]; at < end;) {
        const int32_t first = at % all->blocks, here = all->blocks - first < end - at ? all->blocks - first : end - at;
        run_hidden(&all->pairs[at / all->blocks], (int64_t)first * HGCA_GRID_BLOCK, (int64_t)here * HGCA_GRID_BLOCK);
        at += here;
    }
    atomic_fetch_sub_explicit(&all->left, 1, memory_order_release);
}

static int fit(const hgca_weights *first, const hgca_weights *last, const hgca_weights *like_first, const hgca_weights *like_last) {
    return hgca_weights_fit(first) && hgca_weights_fit(last) && first->dtype == HGCA_F32 && last->dtype == HGCA_F32 &&
           first->outputs == 2 * (int64_t)last->inputs && last->inputs % HGCA_GRID_BLOCK == 0 && first->inputs == like_first->inputs &&
           first->outputs == like_first->outputs && last->outputs == like_last->outputs && first->kind == like_first->kind &&
           last->kind == like_last->kind;
}

/* The half of an expert's first layer that begins at row `from`. */
static hgca_one half(const hgca_weights *both, int64_t from) {
    hgca_one l = hgca_one_of(both);
    l.w.outputs = both->outputs / 2;
    l.w.weight = (const char *)both->weight + from * l.row_bytes;
    l.bias = both->bias ? (const float *)both->bias + from : NULL;
    return l;
}

/* Pairs in the order of their experts, those of one as they come. */
static void order(const int64_t *chosen, int32_t pairs, int32_t *by_expert, int32_t *place) {
    for (int32_t i = 0; i < pairs; i++) {
        int32_t at = i;
        for (; at && chosen[by_expert[at - 1]] > chosen[i]; at--) by_expert[at] = by_expert[at - 1];
        by_expert[at] = i;
    }
    for (int32_t i = 0; i < pairs; i++) place[by_expert[i]] = i;
}

int hgca_experts(const hgca_weights *first, const hgca_weights *last, int32_t experts, const int64_t *chosen, const float *share,
                 int32_t count, int32_t tokens, uintptr_t in, uintptr_t out) {
    if (!first || !last || !chosen || !share || !in || !out || count < 1 || tokens < 1 || (int64_t)count * tokens > MOST_PAIRS)
        return HGCA_BAD_ARGUMENT;
    const int32_t pairs = count * tokens;
    for (int32_t i = 0; i < pairs; i++)
        if (chosen[i] < 0 || chosen[i] >= experts || !fit(&first[chosen[i]], &last[chosen[i]], &first[chosen[0]], &last[chosen[0]]))
            return HGCA_BAD_ARGUMENT;
    if (tokens > 1 && pairs >= EACH * hgca_threads()) {
        const hgca_experts_job many = {first, last, experts, chosen, share, count, tokens, (const float *)in, (float *)out};
        return hgca_experts_many(&many);
    }
    const hgca_weights *wide = &first[chosen[0]], *narrow = &last[chosen[0]];
    const int64_t inputs = wide->inputs, width = narrow->inputs, outputs = narrow->outputs;
    job all = {.batch = {.run = run}, .share = share, .out = (float *)out, .tokens = tokens, .count = count, .blocks = hgca_blocks_of(width)};
    const int grid = wide->kind >= HGCA_GRID8, grid_last = narrow->kind >= HGCA_GRID8;

    hgca_layout own = {NULL, 0};
    for (int pass = 0; pass < 2; pass++) {
        if (pass && (own = (hgca_layout){hgca_take_memory(own.used), 0}).base == NULL) return HGCA_NO_MEMORY;
        all.pairs = hgca_take(&own, sizeof(pair) * (size_t)pairs);
        int32_t *by_expert = hgca_take(&own, sizeof(int32_t) * (size_t)pairs), *place = hgca_take(&own, sizeof(int32_t) * (size_t)pairs);
        hgca_placed_block *placed = grid ? hgca_take_blocks(inputs * tokens, &own) : NULL;
        if (pass) order(chosen, pairs, by_expert, place);
        all.place = place;
        for (int32_t i = 0; i < pairs; i++) {
            hgca_placed_block *hidden = grid_last ? hgca_take_blocks(width, &own) : NULL;
            float *both = hgca_take(&own, sizeof(float) * (size_t)(2 * width)), *to = hgca_take(&own, sizeof(float) * (size_t)outputs);
            if (!pass) continue;
            const int32_t token = by_expert[i] / count;
            const int64_t expert = chosen[by_expert[i]];
            pair *p = &all.pairs[i];
            p->gate = half(&first[expert], 0), p->up = half(&first[expert], width), p->down = hgca_one_of(&last[expert]);
            p->gate.in = p->up.in = (const float *)in + token * inputs;
            p->gate.placed = p->up.placed = placed ? placed + token * (inputs / HGCA_GRID_BLOCK) : NULL;
            p->gate.out = both, p->up.out = both + width;
            p->down.in = both, p->down.placed = hidden, p->down.out = to, p->down.bias = p->down.w.bias;
        }
        if (pass && grid) hgca_linear_kernels()->place((const float *)in, inputs * tokens / HGCA_GRID_BLOCK, placed);
    }
    hgca_cut(pairs * all.blocks, 2 * all.pairs[0].gate.row_bytes, &all.hidden);
    hgca_cut(hgca_blocks_of(outputs), pairs * all.pairs[0].down.row_bytes, &all.last);
    all.batch.pieces = all.hidden.count + all.last.count;
    atomic_init(&all.left, all.hidden.count);
    hgca_pool_run(&all.batch, 0);
    hgca_give_memory(own.base);
    return HGCA_OK;
}
