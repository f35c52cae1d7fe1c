/* Attention over chosen rows. A KV head's positions are cut into units; each unit goes through these stages
 *
 *     blocks   the mean keys of its blocks of 128 are scored        -> which blocks are opened       (with codes of them)
 *     groups   the mean keys of the groups in these are scored      -> which groups are taken        (with a gate)
 *     scan     the codes of the groups taken are scored             -> log-sum-exp of each query
 *     weigh    scores become weights, the largest of the head's group  -> the least weight that is read
 *     read     rows are read exactly, groups not taken enter as an estimate -> merged
 *
 * and what stands behind an arrow is found by whoever finishes a stage's last unit of the head, from sums over the units in
 * their order: results depend on the number of threads, never on their timing. Pieces of the pool stand in an order in which a
 * head's stages follow each other (select_order.c), so a unit that waits for its head's earlier stage waits for threads that are at
 * work on it. */
#include "selecting.h"

#include <math.h>
#include <sched.h>
#include <string.h>

#include "codes.h"

enum { PATIENCE = 2000 };

/* ---- stages of one hgca_unit */

hgca_piece hgca_piece_of(const hgca_head *h, const hgca_attention *rows, const float *query, hgca_partial to) {
    return hgca_piece_over(rows, h->head, h->queries, query, to);
}

void hgca_empty(const hgca_head *h, hgca_partial to) {
    for (int32_t q = 0; q < h->queries; q++) to.max[q] = -INFINITY, to.sum[q] = 0.0f;
}

/* The unit's share of the near rows: a stretch of the head's list of runs. */
static void read_near(hgca_unit *u, hgca_partial to) {
    const hgca_head *h = u->head;
    const hgca_attention *near = h->job->near;
    const int64_t first = h->near_rows * u->index / h->units, end = h->near_rows * (u->index + 1) / h->units;
    if (first == end) {
        hgca_empty(h, to);
        return;
    }
    hgca_piece piece = hgca_piece_of(h, near, h->near_query, to);
    piece.first = first;
    piece.count = end - first;
    if (near->lists) {
        int64_t entry = near->row_start[h->head];
        if (near->run)
            while (piece.first >= near->run[entry]) piece.first -= near->run[entry++];
        else entry += first;
        piece.row = near->row + entry;
        piece.run = near->run ? near->run + entry : NULL;
    }
    h->near_kernel->piece(&piece);
}

static void scan_codes(hgca_unit *u) {
    const hgca_head *h = u->head;
    const hgca_selection *job = h->job;
    hgca_take_groups(u);
    for (int32_t q = 0; q < h->queries; q++) u->max[q] = -INFINITY, u->sum[q] = 0.0f;
    if (u->taken_count == 0 || !hgca_scans(h)) return;
    hgca_scan scan = {
        .codes = (const char *)job->codes + h->head * job->codes_head_stride,
        .dim = job->rows.key_dim,
        .queries = h->queries,
        .groups = u->taken_count == u->groups ? NULL : u->taken,
        .first = u->first,
        .count = u->taken_count,
        .end = job->indexed,
        .spanned = job->span ? job->clustered / HGCA_BLOCK : 0,
        .span = job->span,
        .shared = job->shared,
        .query = h->code_query,
        .softcap = job->rows.softcap,
        .scratch = u->scratch,
        .score = u->score,
        .max = u->max,
        .sum = u->sum,
    };
    hgca_selection_kernels()->scan(&scan);
    const int64_t behind = (u->taken[u->taken_count - 1] + 1) * (int64_t)HGCA_LANES - job->indexed; /* the last group's */
    u->stats.scanned = u->taken_count * HGCA_LANES - (behind > 0 ? behind : 0);
    u->stats.bytes += u->taken_count * hgca_lanes_bytes(scan.dim);
    for (int64_t i = 0, last = -1; i < u->taken_count; i++) {
        const int64_t block = hgca_scales_of(&scan, u->taken[i] / HGCA_GROUPS);
        if (block != last) u->stats.bytes += hgca_scales_bytes(scan.dim);
        last = block;
    }
}

/* What the last stage looks up here and there, while weights are computed from what is in cache: which rows the groups taken are, and
 * the mean values of blocks. Inline: GCC takes calls away of what does nothing but prefetch. */
static inline __attribute__((always_inline)) void prefetch_looked_up(const hgca_unit *u) {
    const hgca_head *h = u->head;
    const hgca_selection *job = h->job;
    const char *mean = job->block_mean ? (const char *)job->block_mean + h->head * job->block_mean_head_stride : NULL;
    const int64_t bytes = 2 * (int64_t)job->rows.value_dim;
    for (int64_t i = 0, block = -1; i < u->taken_count; i++) {
        const int64_t position = (int64_t)u->taken[i] * HGCA_LANES;
        if (position < job->clustered) __builtin_prefetch(job->order + h->head * job->order_head_stride + position, 0, 2);
        if (!mean || u->taken[i] / HGCA_GROUPS == block) continue;
        block = u->taken[i] / HGCA_GROUPS;
        for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(mean + block * bytes + at, 0, 2);
    }
}

static void weigh_rows(hgca_unit *u) {
    const hgca_head *h = u->head;
    memset(u->bins, 0, sizeof *u->bins);
    if (!hgca_scans(h) || u->taken_count == 0) return;
    prefetch_looked_up(u);
    float share[HGCA_UNIT * HGCA_LANES];
    for (int32_t q = 0; q < h->queries; q++) share[q] = hgca_share(u->max[q], h->total[q]);
    hgca_weighing weighing = {
        .score = u->score,
        .count = u->taken_count * HGCA_LANES,
        .queries = h->queries,
        .share = share,
        .least = h->least,
        .weight = u->weight,
        .rows = u->bins->rows,
        .mass = u->bins->mass,
        .total = &u->bins->total,
    };
    hgca_selection_kernels()->weigh(&weighing);
}

/* ---- pieces of the pool */

static void await_stage(hgca_head *h, int stage) {
    for (int turn = 0; atomic_load_explicit(&h->stage, memory_order_acquire) < stage; turn++)
        if (turn > PATIENCE) sched_yield();
}

void hgca_run_selection(hgca_batch *batch, int32_t piece) {
    static void (*const work_of[])(hgca_unit *) = {hgca_score_blocks, hgca_score_groups, scan_codes, weigh_rows, hgca_read_rows};
    static void (*const end_of[])(hgca_head *, hgca_unit *) = {hgca_choose_blocks, hgca_choose_groups, hgca_find_total,
                                                               hgca_choose_rows, hgca_merge_head};
    hgca_selecting *w = (hgca_selecting *)(void *)batch;
    const int stage = w->order[piece] / w->unit_count;
    hgca_unit *u = &w->units[w->order[piece] % w->unit_count];
    hgca_head *h = u->head;
    hgca_unit *units = w->units + h->first_unit;
    await_stage(h, stage);
    const int64_t began = h->job->stats ? hgca_now() : 0;
    if (stage == w->first_stage) read_near(u, h->partials[HGCA_PARTS * u->index + HGCA_NEAR]);
    work_of[stage](u);
    if (h->job->stats) *(&u->stats.group_ns + (stage ? stage - 1 : 0)) += hgca_now() - began; /* of blocks and of groups */
    if (atomic_fetch_sub(&h->left[stage], 1) != 1) return;
    end_of[stage](h, units);
    if (stage == HGCA_STAGES - 1 && h->job->stats && atomic_fetch_sub(h->heads_left, 1) == 1) hgca_sum_up(h, units);
    atomic_store_explicit(&h->stage, stage + 1, memory_order_release);
}
