/* Attention over chosen rows. A KV head's positions are cut into units; each unit goes through four stages
 *
 *     groups   the mean keys of its groups are scored               -> which groups are taken        (with a gate)
 *     scan     the codes of the groups taken are scored             -> log-sum-exp of each query
 *     weigh    scores become weights, pooled over the head's group  -> the least weight that is read
 *     read     rows are read exactly, groups not taken enter as an estimate -> merged
 *
 * and what stands behind an arrow is found by whoever finishes a stage's last unit of the head, from sums over the units in
 * their order: results depend on the number of threads, never on their timing. Pieces of the pool are stage by stage, so
 * a unit that waits for its head's earlier stage waits for threads that are at work on it. */
#include "selecting.h"

#include <math.h>
#include <sched.h>
#include <string.h>

#include "codes.h"

static const float LOG2E = 1.44269504088896341f;
enum { PATIENCE = 2000 };

static int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

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

/* What groups hold by their mean keys, and what they may hold with the spread of their keys. */
static void find_reach(hgca_unit *u, hgca_scan scan) {
    const hgca_head *h = u->head;
    hgca_reaching reaching = {
        .raw = u->raw,
        .unit = scan.softcap > 0.0f ? 1.0f : LOG2E,
        .queries = h->queries,
        .count = scan.count * HGCA_LANES,
        .score = u->mean.score,
        .max = u->mean.max,
        .sum = u->mean.sum,
    };
    scan.raw = u->raw;
    hgca_selection_kernels()->scan(&scan);
    hgca_selection_kernels()->reach(&reaching);
    scan.codes = (const char *)h->job->spread_codes + h->head * h->job->spread_codes_head_stride;
    scan.query = h->spread_query;
    scan.softcap = 0.0f;
    scan.raw = u->spread;
    hgca_selection_kernels()->scan(&scan);
    reaching.variance = u->spread;
    reaching.score = u->reach.score, reaching.max = u->reach.max, reaching.sum = u->reach.sum;
    hgca_selection_kernels()->reach(&reaching);
}

static void score_groups(hgca_unit *u) {
    const hgca_head *h = u->head;
    const hgca_selection *job = h->job;
    read_near(u, h->partials[HGCA_PARTS * u->index + HGCA_NEAR]);
    if (u->clustered == 0) return;
    const int64_t sixteens = hgca_score_room(u->clustered) / HGCA_LANES;
    hgca_scan scan = {
        .codes = job->pages ? (const char *)job->pages + h->head * job->pages_head_stride
                            : (const char *)job->group_codes + h->head * job->group_codes_head_stride,
        .sides = !job->pages ? 0 : job->page_kind == HGCA_PAGE_BOX ? 2 : 1,
        .dim = job->rows.key_dim,
        .queries = h->queries,
        .first = u->first / HGCA_LANES,
        .count = sixteens,
        .end = hgca_scored_groups(job),
        .query = h->code_query,
        .softcap = job->rows.softcap,
        .score = u->mean.score,
        .max = u->mean.max,
        .sum = u->mean.sum,
    };
    const int spread = !job->pages && job->spread_codes != NULL;
    if (spread) find_reach(u, scan);
    else hgca_selection_kernels()->scan(&scan);
    u->stats.groups = u->clustered;
    u->stats.bytes = job->pages ? sixteens * hgca_page_bytes(scan.dim, job->page_kind)
                                : (1 + spread) * (sixteens * hgca_lanes_bytes(scan.dim) +
                                                  up(u->clustered, HGCA_BLOCK) / HGCA_BLOCK * hgca_scales_bytes(scan.dim));
}

/* A bit for each of 16 groups that stand apart. */
static uint32_t apart_bits(const hgca_unit *u, int64_t i, int64_t count) {
    const hgca_selection *job = u->head->job;
    uint32_t bits = 0;
    if (!job->apart) return 0;
    const uint8_t *apart = (const uint8_t *)job->apart + u->head->head * job->apart_head_stride + u->first + i;
    for (int64_t r = 0; r < count; r++) bits |= (uint32_t)(apart[r] != 0) << r;
    return bits;
}

/* Which of 16 groups go through the gate. Those that stand apart always do, beside gate_most. */
static uint32_t passing_bits(hgca_unit *u, int64_t i) {
    const hgca_edge *gate = &u->head->gate;
    uint32_t (*lanes)(const float *, float) = hgca_selection_kernels()->lanes;
    const int64_t count = u->clustered - i < HGCA_LANES ? u->clustered - i : HGCA_LANES;
    const uint32_t every = (1u << count) - 1, apart = apart_bits(u, i, count);
    if (gate->all) return every;
    uint32_t heavy = lanes(u->reach.weight + i, gate->least), sure = heavy & lanes(u->reach.weight + i, gate->above);
    for (uint32_t some = heavy & ~sure & ~apart & every; some && u->room > 0; some &= some - 1, u->room--) sure |= some & -some;
    return (sure | apart) & every;
}

/* Which groups of the unit are taken; the others' mass. */
static void take_groups(hgca_unit *u) {
    const hgca_head *h = u->head;
    const int64_t scored = h->job->gate != HGCA_GATE_NONE ? hgca_score_room(u->clustered) : 0;
    for (int64_t i = 0; i < scored; i += HGCA_LANES) {
        const int64_t left = u->clustered - i;
        const uint32_t bits = passing_bits(u, i), every = left < HGCA_LANES ? (1u << left) - 1 : 0xffff;
        u->passed[i / HGCA_LANES] = (uint16_t)(every & ~bits);
        for (uint32_t some = bits; some; some &= some - 1) u->taken[u->taken_count++] = (int32_t)(u->first + i + __builtin_ctz(some));
    }
    for (int64_t i = scored ? u->clustered : 0; i < u->groups; i++) u->taken[u->taken_count++] = (int32_t)(u->first + i);
    for (int32_t q = 0; q < h->queries; q++)
        u->left_sum[q] = scored ? hgca_selection_kernels()->hold(u->mean.score + q * scored, u->passed, scored) : 0.0f;
}

static void scan_codes(hgca_unit *u) {
    const hgca_head *h = u->head;
    const hgca_selection *job = h->job;
    take_groups(u);
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
        .query = h->code_query,
        .softcap = job->rows.softcap,
        .score = u->score,
        .max = u->max,
        .sum = u->sum,
    };
    hgca_selection_kernels()->scan(&scan);
    const int64_t behind = (u->taken[u->taken_count - 1] + 1) * (int64_t)HGCA_LANES - job->indexed; /* the last group's */
    u->stats.scanned = u->taken_count * HGCA_LANES - (behind > 0 ? behind : 0);
    u->stats.bytes += u->taken_count * hgca_lanes_bytes(scan.dim);
    for (int64_t i = 0, block = -1; i < u->taken_count; i++)
        if (u->taken[i] / HGCA_GROUPS != block) {
            block = u->taken[i] / HGCA_GROUPS;
            u->stats.bytes += hgca_scales_bytes(scan.dim);
        }
}

static void weigh_rows(hgca_unit *u) {
    const hgca_head *h = u->head;
    memset(&u->bins, 0, sizeof u->bins);
    if (!hgca_scans(h) || u->taken_count == 0) return;
    float share[HGCA_UNIT * HGCA_LANES];
    for (int32_t q = 0; q < h->queries; q++) share[q] = hgca_share(u->max[q], h->total[q]) / (float)h->queries;
    hgca_weighing weighing = {
        .score = u->score,
        .count = u->taken_count * HGCA_LANES,
        .queries = h->queries,
        .share = share,
        .least = hgca_least_weight(h->job->mass, h->job->indexed),
        .weight = u->weight,
        .rows = u->bins.rows,
        .mass = u->bins.mass,
        .total = &u->bins.total,
    };
    hgca_selection_kernels()->weigh(&weighing);
}

/* ---- pieces of the pool */

static void await_stage(hgca_head *h, int stage) {
    for (int turn = 0; atomic_load_explicit(&h->stage, memory_order_acquire) < stage; turn++)
        if (turn > PATIENCE) sched_yield();
}

void hgca_run_selection(hgca_batch *batch, int32_t piece) {
    static void (*const work_of[])(hgca_unit *) = {score_groups, scan_codes, weigh_rows, hgca_read_rows};
    static void (*const end_of[])(hgca_head *, hgca_unit *) = {hgca_choose_groups, hgca_find_total, hgca_choose_rows, hgca_merge_head};
    hgca_selecting *w = (hgca_selecting *)(void *)batch;
    const int stage = piece / w->unit_count;
    hgca_unit *u = &w->units[piece % w->unit_count];
    hgca_head *h = u->head;
    hgca_unit *units = w->units + h->first_unit;
    await_stage(h, stage);
    const int64_t began = h->job->stats ? hgca_now() : 0;
    work_of[stage](u);
    if (h->job->stats) *(&u->stats.group_ns + stage) += hgca_now() - began;
    if (atomic_fetch_sub(&h->left[stage], 1) != 1) return;
    end_of[stage](h, units);
    if (stage == HGCA_STAGES - 1 && h->job->stats && atomic_fetch_sub(h->heads_left, 1) == 1) hgca_sum_up(h, units);
    atomic_store_explicit(&h->stage, stage + 1, memory_order_release);
}
