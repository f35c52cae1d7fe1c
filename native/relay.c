/* Attention to a store in the middle of a device's step: called by whoever the device's stream calls, with what was prepared before. */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "attend.h"
#include "hgca.h"
#include "pool.h"
#include "tickets.h"

static hgca_selection choice_of(const hgca_relay *r) {
    hgca_selection own = *r->chosen;
    own.rows.query = r->query, own.rows.out = r->out, own.rows.lse = r->lse;
    own.rows.scale = r->scale, own.rows.softcap = r->softcap;
    own.near = NULL, own.beside = r->beside;
    return own;
}

static hgca_attention rows_of(const hgca_relay *r) {
    hgca_attention far = r->far;
    far.query = r->query, far.out = r->out, far.lse = r->lse;
    far.tokens = 1, far.joins = 0, far.causal = 0, far.scale = r->scale, far.softcap = r->softcap;
    return far;
}

static int reads(const hgca_relay *r) { return r->chosen || r->far.rows; }

static int reads_nothing(const hgca_relay *r) {
    memset(r->out, 0, sizeof(float) * (size_t)r->far.heads * (size_t)r->far.value_dim);
    for (int32_t i = 0; i < r->far.heads; i++) r->lse[i] = -INFINITY;
    return HGCA_OK;
}

static int run(const hgca_relay *r) {
    int64_t ticket;
    int status;
    if (r->chosen) {
        const hgca_selection own = choice_of(r);
        status = hgca_start_selected(&own, 1, &ticket);
    } else if (r->far.rows) {
        const hgca_attention far = rows_of(r);
        status = hgca_start(&far, 1, &ticket);
    } else {
        return reads_nothing(r);
    }
    return status ? status : hgca_wait(ticket);
}

/* What the device chose, as the library tells of its own choices. */
static void tell(hgca_relay *r) {
    const hgca_selection *to = r->told;
    const int64_t *start = r->far.row_start;
    const int32_t heads = r->far.lists;
    const int64_t read = start[heads] - start[0], bytes = read * r->row_bytes + r->scored_bytes;
    r->steps++, r->rows_read += read, r->bytes += bytes;
    for (int32_t h = 0; to->rows_read && h < heads; h++) to->rows_read[h] = start[h + 1] - start[h];
    if (to->read_lse) memcpy(to->read_lse, r->lse, sizeof(float) * (size_t)r->far.heads);
    if (!to->stats) return;
    *to->stats = (hgca_selection_stats){.scanned = to->indexed * heads, .read = read, .bytes = bytes, .read_ns = r->ns * hgca_threads()};
}

int hgca_relays_status(const hgca_relay *const *relays, int32_t count) {
    for (int32_t i = 0; i < count; i++)
        if (relays[i]->status) return relays[i]->status;
    return HGCA_OK;
}

void hgca_run_relay(void *relay) {
    hgca_relay *r = relay;
    const int64_t began = hgca_now();
    r->status = r->query && r->out && r->lse ? run(r) : HGCA_BAD_ARGUMENT;
    r->ns = hgca_now() - began;
    if (r->told && r->status == HGCA_OK && r->far.lists) tell(r);
}

/* All of them as one job of each kind; whether that went well. */
static int run_together(hgca_relay *const *relays, int32_t count, hgca_selection *choices, hgca_attention *lists) {
    int32_t chosen = 0, listed = 0;
    for (int32_t i = 0; i < count; i++) {
        const hgca_relay *r = relays[i];
        if (!(r->query && r->out && r->lse)) return 0;
        if (r->chosen) choices[chosen++] = choice_of(r);
        else if (r->far.rows) lists[listed++] = rows_of(r);
        else reads_nothing(r);
    }
    int64_t one = 0, other = 0;
    int status = chosen ? hgca_start_selected(choices, chosen, &one) : HGCA_OK;
    if (status) return 0;
    if (listed) status = hgca_start(lists, listed, &other);
    if (chosen && hgca_wait(one)) status = HGCA_BAD_ARGUMENT;
    if (listed && other && hgca_wait(other)) status = HGCA_BAD_ARGUMENT;
    return status == HGCA_OK;
}

/* Each of those that read rows took so long. */
static void went_well(hgca_relay *const *relays, int32_t count, int64_t each) {
    for (int32_t i = 0; i < count; i++) {
        hgca_relay *r = relays[i];
        r->status = HGCA_OK, r->ns = reads(r) ? each : 0;
        if (r->told && r->far.lists) tell(r);
    }
}

void hgca_run_relays(hgca_relay *const *relays, int32_t count) {
    int32_t busy = 0;
    for (int32_t i = 0; i < count; i++) busy += reads(relays[i]);
    const int64_t began = hgca_now();
    char *memory = busy > 1 ? malloc((size_t)count * (sizeof(hgca_selection) + sizeof(hgca_attention))) : NULL;
    hgca_selection *choices = (hgca_selection *)(void *)memory;
    const int well = memory && run_together(relays, count, choices, (hgca_attention *)(void *)(choices + count));
    free(memory);
    if (!well) { /* by itself each tells what is wrong with it */
        for (int32_t i = 0; i < count; i++) hgca_run_relay(relays[i]);
        return;
    }
    went_well(relays, count, (hgca_now() - began) / busy);
}

static hgca_flag *number(const volatile int32_t *flags, int64_t at) {
    return (hgca_flag *)(const volatile void *)&flags[HGCA_FLAGS * at];
}

/* Whether the device names the rows of one of these. */
static int names(hgca_relay *const *relays, int32_t count) {
    for (int32_t i = 0; i < count; i++)
        if (relays[i]->told && relays[i]->far.lists) return 1;
    return 0;
}

/* Relays whose rows are known, before their queries are: these are waited for with the rows in the caches. Whether it could be done so. */
static int run_asked(hgca_relay *const *relays, int32_t count, hgca_flag *flag, int32_t token, int64_t until, int *status) {
    int32_t busy = 0;
    for (int32_t i = 0; i < count; i++) {
        const hgca_relay *r = relays[i];
        if (r->chosen || !(r->query && r->out && r->lse)) return 0; /* what is chosen is chosen by the query */
        busy += reads(r);
    }
    hgca_attention *jobs = busy ? malloc((size_t)busy * sizeof *jobs) : NULL;
    if (jobs == NULL) return 0;
    for (int32_t i = 0, at = 0; i < count; i++)
        if (reads(relays[i])) jobs[at++] = rows_of(relays[i]);
        else reads_nothing(relays[i]);
    int64_t ticket;
    hgca_when when;
    int went = hgca_start_asked(jobs, busy, flag, token, until, &when, &ticket);
    free(jobs);
    if (went) return 0;
    went = hgca_wait(ticket);
    const int64_t asked = atomic_load(&when), each = (hgca_now() - asked) / busy;
    if (went == HGCA_OK && asked == 0) went = HGCA_NO_ANSWER;
    *status = went;
    if (went == HGCA_OK) went_well(relays, count, each);
    return 1;
}

int hgca_serve_relays(hgca_relay *const *relays, int32_t layers, int32_t parts, int32_t each, const volatile int32_t *asked,
                      const volatile int32_t *named, volatile int32_t *answered, int32_t token, double patience) {
    int status = HGCA_OK;
    for (int32_t l = 0; l < layers; l++) {
        hgca_flag *ask = number(asked, l);
        for (int32_t p = 0, end; p < parts && status == HGCA_OK; p = end) {
            hgca_relay *const *first = relays + ((int64_t)l * parts + p) * each;
            const int64_t until = hgca_now() + (int64_t)(patience * 1e9);
            if (names(first, each) && !hgca_wait_told(number(named, (int64_t)l * parts + p), token, until)) status = HGCA_NO_ANSWER;
            for (end = p + 1; end < parts; end++)
                if (names(first + (int64_t)(end - p) * each, each) && !hgca_is_told(number(named, (int64_t)l * parts + end), token)) break;
            if (status || run_asked(first, (end - p) * each, ask, token, until, &status)) continue;
            if (hgca_wait_told(ask, token, until)) hgca_run_relays(first, (end - p) * each);
            else status = HGCA_NO_ANSWER;
        }
        volatile _Atomic int32_t *to = (volatile _Atomic int32_t *)(volatile void *)&answered[HGCA_FLAGS * l];
        atomic_store_explicit(to, token, memory_order_release);
    }
    return status;
}
