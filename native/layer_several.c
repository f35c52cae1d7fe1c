/* A decoder layer of a token of each of several sequences, and of several tokens but for their attention. */
#include <stdatomic.h>
#include <string.h>

#include "hgca.h"
#include "layer.h"
#include "linear.h"
#include "pool.h"
#include "tickets.h"

static int fits_several(const hgca_layer *l) {
    if (!hgca_layer_fits(l)) return 0;
    return l->mixture || (l->gated[0].outputs == l->gated[1].outputs && l->gated[0].outputs == l->gated[2].inputs);
}

/* What may take a thread microseconds is cut into pieces of so many tokens. */
enum { TOKENS = 8 };

/* Where a vector's key and value go; no window: nowhere. */
typedef struct {
    const hgca_attention *window;
    int64_t row;
} place;

int hgca_put_token(const hgca_layer *l, const hgca_attention *window, int64_t row, const float *key, const float *value) {
    const int64_t width = l->projection[2].outputs / l->kv_heads;
    return hgca_put_row(window, row, HGCA_F32, (uintptr_t)key, 4 * (int64_t)l->dim, (uintptr_t)value, 4 * width);
}

typedef struct {
    hgca_batch batch; /* first: the pool hands it back */
    const hgca_layer *layer;
    float *query, *key;
    const float *value;
    const float *cosine, *sine;
    const place *places; /* NULL: rows are not put */
    int64_t tokens;
    _Atomic int status;
} turning;

static void run_turning(hgca_batch *batch, int32_t piece) {
    turning *t = (turning *)(void *)batch;
    const hgca_layer *l = t->layer;
    const int64_t first = (int64_t)piece * TOKENS, left = t->tokens - first, end = first + (left < TOKENS ? left : TOKENS);
    for (int64_t i = first; i < end; i++) {
        const int64_t angles = i * l->rotated;
        float *key = t->key + i * l->projection[1].outputs;
        int status = hgca_turn_heads(l, t->query + i * l->projection[0].outputs, key, t->cosine + angles, t->sine + angles);
        if (!status && t->places)
            status = hgca_put_token(l, t->places[i].window, t->places[i].row, key, t->value + i * l->projection[2].outputs);
        if (status) t->status = status;
    }
}

static int before(const hgca_layer *l, int64_t tokens, int among_openmp, const float *in, const float *cosine, const float *sine,
                  const place *places, float *query) {
    const hgca_around norm = {.norm = &l->norm[0], .among_openmp = among_openmp};
    const int status = hgca_linear_around(l->projection, 3, tokens, in, &norm, query);
    if (status) return status;
    turning t = {.layer = l, .query = query, .key = query + tokens * l->projection[0].outputs, .cosine = cosine, .sine = sine,
                 .places = places, .tokens = tokens};
    t.value = t.key + tokens * l->projection[1].outputs;
    t.batch.run = run_turning, t.batch.pieces = (int32_t)((tokens + TOKENS - 1) / TOKENS);
    hgca_pool_run(&t.batch, among_openmp);
    return t.status;
}

/* hidden: [2][tokens][width] */
static int after_mixture(const hgca_layer *l, int64_t tokens, const hgca_around *add, const float *attended, float *hidden, float *out) {
    const int64_t width = l->out.outputs;
    float *mixed = hidden + tokens * width;
    int status = hgca_linear_around(&l->out, 1, tokens, attended, add, out);
    if (!status) status = hgca_norm_rows(&l->norm[1], out, tokens, width, hidden);
    if (!status) status = hgca_mixed(l->mixture, (int32_t)tokens, (uintptr_t)hidden, (uintptr_t)mixed);
    if (!status) hgca_add(out, mixed, out, tokens * width);
    return status;
}

/* hidden: [2][tokens][numbers between the layers of the block] */
static int after(const hgca_layer *l, int64_t tokens, int among_openmp, const float *in, const float *attended, float *hidden, float *out) {
    const hgca_around add = {.onto = in, .among_openmp = among_openmp}, norm = {.norm = &l->norm[1], .among_openmp = among_openmp};
    if (l->mixture) return after_mixture(l, tokens, &add, attended, hidden, out);
    const hgca_around gate = {.up = hidden + tokens * l->gated[0].outputs, .onto = out, .among_openmp = among_openmp};
    int status = hgca_linear_around(&l->out, 1, tokens, attended, &add, out);
    if (!status) status = hgca_linear_around(l->gated, 2, tokens, out, &norm, hidden);
    return status ? status : hgca_linear_around(&l->gated[2], 1, tokens, hidden, &gate, out);
}

static size_t hidden_bytes(const hgca_layer *l, int64_t tokens) {
    return 2 * sizeof(float) * (size_t)(tokens * (l->mixture ? l->out.outputs : l->gated[0].outputs));
}

int hgca_before_attention_several(const hgca_layer *l, int64_t tokens, uintptr_t in, uintptr_t cosine, uintptr_t sine, uintptr_t out) {
    if (!l || tokens < 1 || !in || !out || !fits_several(l) || (l->rotated && (!cosine || !sine))) return HGCA_BAD_ARGUMENT;
    return before(l, tokens, 1, (const float *)in, (const float *)cosine, (const float *)sine, NULL, (float *)out);
}

int hgca_after_attention_several(const hgca_layer *l, int64_t tokens, uintptr_t in, uintptr_t attention, uintptr_t out) {
    if (!l || tokens < 1 || tokens > INT32_MAX || !in || !attention || !out || !fits_several(l)) return HGCA_BAD_ARGUMENT;
    float *hidden = hgca_take_memory(hidden_bytes(l, tokens));
    if (hidden == NULL) return HGCA_NO_MEMORY;
    const int status = after(l, tokens, 1, (const float *)in, (const float *)attention, hidden, (float *)out);
    hgca_give_memory(hidden);
    return status;
}

/* Several tokens of a sequence attend to a window from its first row to their own, and to nothing else. */
static int fits_tokens(const hgca_layer *l, const hgca_reading *r) {
    if (!hgca_reading_fits(l, r) || r->tokens < 1) return 0;
    if (r->tokens == 1) return 1;
    return !r->chosen && !r->query && r->far.rows <= 0 && r->near.lists == 0 && r->near.rows == r->row + r->tokens;
}

int hgca_decode_layer_several(const hgca_layer *l, const hgca_reading *const *r, int32_t count, uintptr_t in, uintptr_t cosine,
                              uintptr_t sine, uintptr_t out) {
    if (!l || !r || count < 1 || !in || !out || !fits_several(l) || (l->rotated && (!cosine || !sine))) return HGCA_BAD_ARGUMENT;
    int64_t vectors = 0;
    for (int32_t i = 0; i < count; vectors += r[i++]->tokens)
        if (!fits_tokens(l, r[i])) return HGCA_BAD_ARGUMENT;
    if (vectors > INT32_MAX) return HGCA_BAD_ARGUMENT;
    const int64_t queries = l->projection[0].outputs, keys = l->projection[1].outputs, values = l->projection[2].outputs;
    const size_t each = sizeof(float) * (size_t)vectors;
    hgca_layout own = {NULL, 0};
    float *query = NULL, *attended = NULL, *hidden = NULL;
    place *places = NULL;
    for (int pass = 0; pass < 2; pass++) {
        if (pass && (own = (hgca_layout){hgca_take_memory(own.used), 0}).base == NULL) return HGCA_NO_MEMORY;
        query = hgca_take(&own, each * (size_t)(queries + keys + values));
        attended = hgca_take(&own, each * (size_t)l->out.inputs);
        hidden = hgca_take(&own, hidden_bytes(l, vectors));
        places = hgca_take(&own, sizeof *places * (size_t)vectors);
    }
    for (int64_t i = 0, v = 0; i < count; i++)
        for (int32_t t = 0; t < r[i]->tokens; t++) places[v++] = (place){r[i]->window, r[i]->row + t};
    int status = before(l, vectors, 0, (const float *)in, (const float *)cosine, (const float *)sine, places, query);
    if (!status) status = hgca_attend_readings(l, r, count, query, attended);
    if (!status) status = after(l, vectors, 0, (const float *)in, attended, hidden, (float *)out);
    hgca_give_memory(own.base);
    return status;
}

int hgca_decode_layers_several(const hgca_layer *const *layers, int32_t depth, const hgca_reading *const *readings, int32_t count,
                               uintptr_t in, uintptr_t cosine, uintptr_t sine, uintptr_t out) {
    if (!layers || depth < 1 || !readings || count < 1) return HGCA_BAD_ARGUMENT;
    int64_t vectors = 0;
    for (int64_t i = 0; i < (int64_t)depth * count; i++) { /* all of them first: none puts a row if one cannot */
        const hgca_layer *l = layers[i / count];
        const hgca_reading *r = readings[i], *first = readings[i % count];
        if (!l || !fits_several(l) || !fits_tokens(l, r) || r->tokens != first->tokens || l->out.outputs != layers[0]->out.outputs)
            return HGCA_BAD_ARGUMENT;
        if (i < count) vectors += r->tokens;
    }
    float *other = hgca_take_memory(sizeof(float) * (size_t)(vectors * layers[0]->out.outputs));
    if (other == NULL) return HGCA_NO_MEMORY;
    int status = HGCA_OK;
    for (int32_t i = 0; i < depth && !status; i++) { /* by turns, so that the last one writes `out` */
        const uintptr_t to = (depth - i) % 2 ? out : (uintptr_t)other;
        status = hgca_decode_layer_several(layers[i], readings + (int64_t)i * count, count, in, cosine, sine, to);
        in = to;
    }
    hgca_give_memory(other);
    return status;
}
