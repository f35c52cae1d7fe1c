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
#include <time.h>

#include "codes.h"

static const float LOG2E = 1.44269504088896341f;
enum { PATIENCE = 2000, PREFETCHED = 64 };

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

static int scans(const hgca_head *h) { return h->job->gate != HGCA_GATE_READ; }

static void scan_codes(hgca_unit *u) {
    const hgca_head *h = u->head;
    const hgca_selection *job = h->job;
    take_groups(u);
    for (int32_t q = 0; q < h->queries; q++) u->max[q] = -INFINITY, u->sum[q] = 0.0f;
    if (u->taken_count == 0 || !scans(h)) return;
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
    if (!scans(h) || u->taken_count == 0) return;
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

hgca_attention hgca_mean_rows(const hgca_selection *job) {
    hgca_attention mean = job->rows;
    mean.key = job->mean;
    mean.value = (const char *)job->mean + job->rows.key_dim * hgca_number_bytes(job->mean_dtype);
    mean.key_head_stride = mean.value_head_stride = job->mean_head_stride;
    mean.key_row_stride = mean.value_row_stride = job->mean_row_stride;
    mean.dtype = job->mean_dtype;
    mean.key_scale = mean.value_scale = NULL;
    mean.rows = job->clustered / HGCA_LANES;
    return mean;
}

int64_t hgca_row_bytes(const hgca_attention *rows) {
    return (rows->key_dim + rows->value_dim) * hgca_number_bytes(rows->dtype) + (rows->dtype == HGCA_I8 ? 8 : 0);
}

/* Row of position 16 g + r of the unit's head, -1 beyond the index. */
static int32_t row_at(const hgca_head *h, int64_t position) {
    if (position >= h->job->indexed) return -1;
    return position < h->job->clustered ? h->job->order[h->head * h->job->order_head_stride + position] : (int32_t)position;
}

/* A kernel fetches a tile while it works on the one before: the first has none before it. */
static void prefetch_row(const hgca_head *h, int64_t row) {
    const hgca_attention *rows = &h->job->rows;
    const int64_t size = hgca_number_bytes(rows->dtype);
    const char *key = (const char *)rows->key + h->head * rows->key_head_stride + row * rows->key_row_stride;
    const char *value = (const char *)rows->value + h->head * rows->value_head_stride + row * rows->value_row_stride;
    for (int64_t b = 0; b < rows->key_dim * size; b += 64) __builtin_prefetch(key + b, 0, 2);
    for (int64_t b = 0; b < rows->value_dim * size; b += 64) __builtin_prefetch(value + b, 0, 2);
}

/* The rows that are read, into u->rows; a position of no row (behind the index) is none. */
static int64_t list_chosen(hgca_unit *u) {
    const hgca_head *h = u->head;
    uint32_t (*lanes)(const float *, float) = hgca_selection_kernels()->lanes;
    const int every = !scans(h) || h->edge.all;
    int64_t count = 0, room = u->room;
    for (int64_t i = 0; i < u->taken_count; i++) {
        const int64_t before = count;
        u->chosen[i] = 0;
        for (uint32_t some = every ? 0xffff : lanes(u->weight + i * HGCA_LANES, h->edge.least); some; some &= some - 1) {
            int r = __builtin_ctz(some);
            if (!every && u->weight[i * HGCA_LANES + r] < h->edge.above && room-- <= 0) continue;
            int32_t row = row_at(h, (int64_t)u->taken[i] * HGCA_LANES + r);
            if (row < 0) continue;
            if (count < PREFETCHED) prefetch_row(h, row);
            u->rows[count++] = row;
            u->chosen[i] |= (uint16_t)(1u << r);
        }
        if ((int64_t)u->taken[i] * HGCA_LANES < h->job->clustered) /* and the numbers of these rows */
            u->stats.bytes += (count - before) * (int64_t)sizeof *h->job->order;
    }
    return count;
}

/* Pages taken, as runs into u->rows and behind their beginnings; neighbours are one run. */
static int64_t list_pages(hgca_unit *u, hgca_piece *piece) {
    int32_t *run = u->rows + u->groups;
    const int64_t end = u->head->job->indexed;
    int64_t runs = 0, count = 0;
    for (int64_t i = 0; i < u->taken_count; i++) {
        const int64_t first = (int64_t)u->taken[i] * HGCA_LANES, rows = end - first < HGCA_LANES ? end - first : HGCA_LANES;
        if (runs && u->rows[runs - 1] + run[runs - 1] == first) run[runs - 1] += (int32_t)rows;
        else u->rows[runs] = (int32_t)first, run[runs++] = (int32_t)rows;
        count += rows;
    }
    piece->run = run;
    return count;
}

static void read_chosen(hgca_unit *u, hgca_partial to) {
    const hgca_head *h = u->head;
    hgca_piece piece = hgca_piece_of(h, &h->job->rows, h->query, to);
    piece.row = u->rows;
    piece.count = h->job->pages ? list_pages(u, &piece) : list_chosen(u);
    h->kernel->piece(&piece);
    u->stats.read = piece.count;
    u->stats.bytes += piece.count * hgca_row_bytes(&h->job->rows);
}

/* Groups that hold next to nothing each: their values are about their block's mean. */
static int64_t pass_groups(hgca_unit *u, hgca_partial to) {
    const hgca_head *h = u->head;
    const hgca_selection *job = h->job;
    const int64_t dim = job->rows.value_dim, scored = hgca_score_room(u->clustered);
    int64_t count = 0;
    for (int64_t i = 0; i < scored; i += HGCA_LANES) count += __builtin_popcount(u->passed[i / HGCA_LANES]);
    if (count == 0) return 0;
    for (int32_t q = 0; q < h->queries; q++) to.max[q] = u->mean.max[q] + HGCA_GROUP_OCTAVES;
    memset(to.out, 0, sizeof(float) * (size_t)(hgca_padded(dim) * h->queries));
    hgca_passing passing = {
        .score = u->mean.score,
        .passed = u->passed,
        .count = scored,
        .queries = h->queries,
        .dim = job->rows.value_dim,
        .mean = (const char *)job->block_mean + h->head * job->block_mean_head_stride + 2 * dim * (u->first / HGCA_GROUPS),
        .out = to.out,
        .sum = to.sum,
    };
    hgca_selection_kernels()->pass_by(&passing);
    u->stats.bytes += passing.blocks * 2 * dim;
    return count;
}

/* Groups not taken stand for 16 rows each: those of some weight with their own mean key and value. */
static void guess_groups(hgca_unit *u, hgca_partial to, hgca_partial passed) {
    const hgca_head *h = u->head;
    const int64_t scored = h->job->pages ? 0 : hgca_score_room(u->clustered);
    uint32_t (*lanes)(const float *, float) = hgca_selection_kernels()->lanes;
    int64_t count = 0;
    for (int64_t i = 0; i < scored; i += HGCA_LANES) {
        uint16_t *bits = &u->passed[i / HGCA_LANES];
        const uint32_t some = *bits & (h->job->block_mean ? lanes(u->mean.weight + i, h->estimate_edge) : 0xffff);
        *bits &= (uint16_t)~some;
        for (uint32_t left = some; left; left &= left - 1) u->rows[count++] = (int32_t)(u->first + i + __builtin_ctz(left));
    }
    hgca_empty(h, to);
    hgca_empty(h, passed);
    u->stats.estimated = count + (scored ? pass_groups(u, passed) : 0);
    if (count == 0) return;
    const hgca_attention mean = hgca_mean_rows(h->job);
    hgca_piece piece = hgca_piece_of(h, &mean, h->mean_query, to);
    piece.row = u->rows;
    piece.count = count;
    h->mean_kernel->piece(&piece);
    for (int32_t q = 0; q < h->queries; q++) to.max[q] += HGCA_GROUP_OCTAVES;
    u->stats.bytes += count * hgca_row_bytes(&mean);
}

/* Positions scored and not read: their weights are known from their codes, their values are about their block's mean. */
static void guess_left(hgca_unit *u, hgca_partial to) {
    const hgca_head *h = u->head;
    const hgca_selection *job = h->job;
    hgca_empty(h, to);
    if (!job->block_mean || !scans(h) || h->edge.all || u->taken_count == 0) return;
    const int64_t dim = job->rows.value_dim, width = hgca_padded(dim);
    for (int32_t q = 0; q < h->queries; q++) to.max[q] = u->max[q];
    memset(to.out, 0, sizeof(float) * (size_t)(width * h->queries));
    hgca_leaving leaving = {
        .score = u->score,
        .groups = u->taken,
        .count = u->taken_count,
        .chosen = u->chosen,
        .queries = h->queries,
        .dim = job->rows.value_dim,
        .mean = (const char *)job->block_mean + h->head * job->block_mean_head_stride,
        .out = to.out,
        .sum = to.sum,
    };
    hgca_selection_kernels()->leave(&leaving);
    u->stats.bytes += leaving.blocks * 2 * dim;
}

static void read_rows(hgca_unit *u) {
    hgca_partial *to = u->head->partials + HGCA_PARTS * u->index;
    read_chosen(u, to[HGCA_READ]);
    guess_groups(u, to[HGCA_GUESSED], to[HGCA_PASSED]);
    guess_left(u, to[HGCA_LEFT]);
}

/* ---- pieces of the pool */

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void await_stage(hgca_head *h, int stage) {
    for (int turn = 0; atomic_load_explicit(&h->stage, memory_order_acquire) < stage; turn++)
        if (turn > PATIENCE) sched_yield();
}

void hgca_run_selection(hgca_batch *batch, int32_t piece) {
    static void (*const work_of[])(hgca_unit *) = {score_groups, scan_codes, weigh_rows, read_rows};
    static void (*const end_of[])(hgca_head *, hgca_unit *) = {hgca_choose_groups, hgca_find_total, hgca_choose_rows, hgca_merge_head};
    hgca_selecting *w = (hgca_selecting *)(void *)batch;
    const int stage = piece / w->unit_count;
    hgca_unit *u = &w->units[piece % w->unit_count];
    hgca_head *h = u->head;
    hgca_unit *units = w->units + h->first_unit;
    await_stage(h, stage);
    const int64_t began = h->job->stats ? now() : 0;
    work_of[stage](u);
    if (h->job->stats) *(&u->stats.group_ns + stage) += now() - began;
    if (atomic_fetch_sub(&h->left[stage], 1) != 1) return;
    end_of[stage](h, units);
    if (stage == HGCA_STAGES - 1 && h->job->stats && atomic_fetch_sub(h->heads_left, 1) == 1) hgca_sum_up(h, units);
    atomic_store_explicit(&h->stage, stage + 1, memory_order_release);
}
