/* hgca_serve_relays, with a thread in the device's place: it names rows and asks in any order, sometimes late, sometimes never. */
#include "check_serve.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "failures.h"
#include "problem.h"

enum { LAYERS = 3, PARTS = 2, EACH = 2, OF_LAYER = PARTS * EACH, ALL = LAYERS * OF_LAYER, TOKEN = 7 };

typedef struct {
    problem of[ALL];
    float *query[ALL]; /* copies, which come late */
    int64_t *start[ALL];
    hgca_relay relay[ALL], *all[ALL];
    hgca_selection told[ALL];
    int32_t asked[LAYERS * HGCA_FLAGS], named[LAYERS * PARTS * HGCA_FLAGS], answered[LAYERS * HGCA_FLAGS];
    uint64_t state;
    int silent; /* the layer from which on it says nothing */
} step;

static size_t query_bytes(const problem *p) { return sizeof(float) * (size_t)p->job.heads * (size_t)p->job.key_dim; }

static void set(int32_t *flags, int at) {
    atomic_store_explicit((_Atomic int32_t *)(void *)&flags[HGCA_FLAGS * at], TOKEN, memory_order_release);
}

static int is_set(const int32_t *flags, int at) {
    return atomic_load_explicit((const _Atomic int32_t *)(const void *)&flags[HGCA_FLAGS * at], memory_order_acquire) == TOKEN;
}

static void rest(int64_t microseconds) {
    const struct timespec some = {.tv_nsec = microseconds * 1000};
    if (microseconds) nanosleep(&some, NULL);
}

static void name(step *s, int layer, int part) {
    for (int i = layer * OF_LAYER + part * EACH; i < layer * OF_LAYER + (part + 1) * EACH; i++)
        if (s->of[i].job.lists) memcpy(s->start[i], s->of[i].job.row_start, sizeof(int64_t) * (size_t)(s->of[i].job.lists + 1));
    set(s->named, layer * PARTS + part);
}

static void ask(step *s, int layer) {
    for (int i = layer * OF_LAYER; i < (layer + 1) * OF_LAYER; i++) memcpy(s->query[i], s->of[i].job.query, query_bytes(&s->of[i]));
    set(s->asked, layer);
}

static void *device(void *argument) {
    step *s = argument;
    for (int layer = 0; layer < LAYERS; layer++) {
        const int first = pick(&s->state, PARTS + 1); /* when it asks: before, between or after the names */
        for (int part = 0; part <= PARTS; part++) {
            rest(pick(&s->state, 3) ? 0 : pick(&s->state, 301));
            if (layer >= s->silent && part == PARTS) return NULL;
            if (part == first) ask(s, layer);
            if (part < PARTS) name(s, layer, part);
        }
        while (!is_set(s->answered, layer)) rest(20);
    }
    return NULL;
}

static void make_step(step *s, uint64_t seed) {
    memset(s, 0, sizeof *s);
    s->state = seed * 2654435761u + 1;
    s->silent = LAYERS;
    for (int i = 0; i < ALL; i++) {
        const int kind = pick(&s->state, 4);
        const shape own = {.kv_heads = 1 + pick(&s->state, 3), .group = 1 + pick(&s->state, 5), .rows = pick(&s->state, 901),
                           .key_dim = 1 + pick(&s->state, 140), .value_dim = 1 + pick(&s->state, 140), .dtype = pick(&s->state, 4),
                           .tokens = 1, .exact = pick(&s->state, 2), .gap = pick(&s->state, 4), .lists = kind > 1,
                           .softcap = pick(&s->state, 4) ? 0.0f : 3.0f};
        s->of[i] = make(&own, seed * ALL + (uint64_t)i);
        hgca_relay *r = s->all[i] = &s->relay[i];
        s->query[i] = must(calloc(1, query_bytes(&s->of[i])));
        *r = (hgca_relay){.far = s->of[i].job, .query = s->query[i], .out = s->of[i].job.out, .lse = s->of[i].job.lse,
                          .scale = s->of[i].job.scale, .softcap = own.softcap, .status = -1};
        if (kind == 0) r->far.rows = 0; /* nothing */
        if (!own.lists) continue;
        s->start[i] = must(calloc((size_t)(r->far.lists + 1), sizeof(int64_t)));
        r->far.row_start = s->start[i], r->told = &s->told[i];
    }
}

static void drop_step(step *s) {
    for (int i = 0; i < ALL; i++) {
        drop(&s->of[i]);
        free(s->query[i]);
        free(s->start[i]);
    }
}

static const char *wrong_relay(const step *s, int i) {
    const hgca_relay *r = &s->relay[i];
    const problem *p = &s->of[i];
    if (r->status || r->ns < 0) return "a relay that was served";
    if (r->far.rows == 0 && p->job.rows) return r->lse[0] == -INFINITY && r->out[0] == 0.0f ? NULL : "a relay of nothing that was served";
    if (r->told && (r->steps != 1 || r->rows_read != p->job.row_start[p->job.lists])) return "what a served relay read";
    for (int h = 0; h < p->job.heads; h++)
        if (!(error_of(p, h) <= (p->job.dtype == HGCA_I8 ? 3e-4 : 1e-5))) return "a served answer";
    return NULL;
}

static const char *one(uint64_t seed) {
    step s;
    pthread_t thread;
    make_step(&s, seed);
    if (pick(&s.state, 10) == 0) s.silent = pick(&s.state, LAYERS);
    const int silent = s.silent;
    if (pthread_create(&thread, NULL, device, &s)) exit(2);
    const int status = hgca_serve_relays(s.all, LAYERS, PARTS, EACH, s.asked, s.named, s.answered, TOKEN, silent < LAYERS ? 0.02 : 30.0);
    pthread_join(thread, NULL);
    const char *wrong = NULL;
    if (silent == LAYERS && status) wrong = "a step that was asked for";
    if (silent < LAYERS && status != HGCA_NO_ANSWER && status != HGCA_OK) wrong = "a step that was not asked for";
    for (int l = 0; l < LAYERS && !wrong; l++)
        if (!is_set(s.answered, l)) wrong = "a layer that waits for ever";
    for (int i = 0; i < ALL && !wrong; i++) /* what was not answered keeps the status it began with */
        if (silent == LAYERS || s.relay[i].status != -1) wrong = wrong_relay(&s, i);
    drop_step(&s);
    return wrong;
}

int check_serve(int count, uint64_t seed) { return count_failures("serving", one, count, seed); }
