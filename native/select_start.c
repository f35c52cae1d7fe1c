/* Attention over chosen rows: checked, laid out in one piece of memory, and handed to the pool. */
#include <string.h>

#include "codes.h"
#include "dispatch.h"
#include "selecting.h"

enum { LEAST_UNIT = 16, UNITS_PER_THREAD = 3, MOST_QUERIES = 256, CLUSTER_STEP = 256 };

/* A group with a score of its own costs so many quarters of one whose codes are scored: few of them are taken. */
enum { GATED_WORK = 1, SCANNED_WORK = 4 };

static int check_pages(const hgca_selection *job) {
    if (job->page_kind < HGCA_PAGE_BOX || job->page_kind > HGCA_PAGE_MEAN) return HGCA_BAD_ARGUMENT;
    if (job->gate != HGCA_GATE_READ || job->clustered != job->indexed) return HGCA_BAD_ARGUMENT;
    if (job->order || job->apart || job->block_codes) return HGCA_BAD_ARGUMENT;
    return job->gate_mass > 0.0f && job->gate_mass <= 1.0f && job->gate_most >= 0 ? HGCA_OK : HGCA_BAD_ARGUMENT;
}

static int check_clustered(const hgca_selection *job) {
    if (job->pages) return check_pages(job);
    if (job->clustered < 0 || job->clustered % CLUSTER_STEP || job->clustered > job->indexed) return HGCA_BAD_ARGUMENT;
    if (job->gate < HGCA_GATE_NONE || job->gate > HGCA_GATE_READ) return HGCA_BAD_ARGUMENT;
    if (job->clustered == 0) return HGCA_OK;
    if (!job->order || job->span < 0 || (job->span & (job->span - 1)) || job->shared < 0 || job->shared > job->span)
        return HGCA_BAD_ARGUMENT;
    if (job->gate == HGCA_GATE_NONE) return job->block_codes ? HGCA_BAD_ARGUMENT : HGCA_OK;
    if (job->block_codes && (!job->block_spread_codes || !job->block_mean || !(job->open_mass > 0.0f && job->open_mass <= 1.0f)))
        return HGCA_BAD_ARGUMENT;
    if (!job->group_codes || !job->mean || job->mean_dtype < HGCA_F32 || job->mean_dtype > HGCA_F16) return HGCA_BAD_ARGUMENT;
    return job->gate_mass > 0.0f && job->gate_mass <= 1.0f && job->gate_most >= 0 ? HGCA_OK : HGCA_BAD_ARGUMENT;
}

/* Rows of a KV head: all, or those of its list. */
static int64_t near_rows(const hgca_selection *job, int64_t head) {
    const hgca_attention *near = job->near;
    if (near == NULL) return 0;
    if (!near->lists) return near->rows;
    if (!near->run) return near->row_start[head + 1] - near->row_start[head];
    int64_t rows = 0;
    for (int64_t i = near->row_start[head]; i < near->row_start[head + 1]; i++) rows += near->run[i];
    return rows;
}

static int check_near(const hgca_attention *near, const hgca_attention *rows) {
    if (near == NULL) return HGCA_OK;
    hgca_attention whole = *near;
    whole.query = rows->query, whole.out = rows->out, whole.lse = rows->lse;
    if (hgca_check(&whole) || (near->lists && near->lists != rows->kv_heads) || near->tokens != 1 || near->only_read) return HGCA_BAD_ARGUMENT;
    int same = near->heads == rows->heads && near->kv_heads == rows->kv_heads && near->key_dim == rows->key_dim &&
               near->value_dim == rows->value_dim;
    return same ? HGCA_OK : HGCA_BAD_ARGUMENT;
}

static int check(const hgca_selection *job) {
    int status = hgca_check(&job->rows);
    if (status) return status;
    if (job->rows.lists || job->rows.tokens != 1 || job->rows.causal || job->rows.only_read) return HGCA_BAD_ARGUMENT;
    if (job->rows.key_dim > HGCA_MOST_WIDTH || job->rows.heads / job->rows.kv_heads > MOST_QUERIES) return HGCA_BAD_ARGUMENT;
    if (job->indexed < 0 || job->indexed > job->rows.rows || job->rows.rows > INT32_MAX) return HGCA_BAD_ARGUMENT;
    if (job->indexed > 0 && !job->codes && !job->pages) return HGCA_BAD_ARGUMENT;
    if (!(job->mass > 0.0f && job->mass <= 1.0f) || job->least < 0 || job->most < 0) return HGCA_BAD_ARGUMENT;
    status = check_near(job->near, &job->rows);
    return status ? status : check_clustered(job);
}

static void *take(hgca_layout *at, int64_t bytes) { return hgca_take(at, (size_t)bytes); }

static hgca_partial take_partial(hgca_layout *at, int64_t queries, int64_t width) {
    float *out = take(at, 4 * queries * width), *rest = take(at, 8 * queries);
    return (hgca_partial){out, rest, at->base ? rest + queries : NULL};
}

static int64_t groups_of(const hgca_selection *job) { return (job->indexed + HGCA_LANES - 1) / HGCA_LANES; }

static int opens_blocks(const hgca_selection *job) { return job->block_codes != NULL && job->clustered > 0; }

/* What a head's first `groups` groups cost, and how many groups cost so much. */
static int64_t gated_groups(const hgca_selection *job) {
    return job->gate == HGCA_GATE_SCAN && !opens_blocks(job) ? job->clustered / HGCA_LANES : 0;
}

static int64_t work_of(const hgca_selection *job, int64_t groups) {
    const int64_t gated = hgca_smaller(groups, gated_groups(job));
    return GATED_WORK * gated + SCANNED_WORK * (groups - gated);
}

static int64_t groups_for(const hgca_selection *job, int64_t work) {
    const int64_t gated = gated_groups(job);
    return work <= GATED_WORK * gated ? work / GATED_WORK : gated + (work - GATED_WORK * gated) / SCANNED_WORK;
}

/* Groups of a unit begin and end at whole steps of a clustering. Where most blocks stay closed 16 of these are scored at once. */
static int64_t unit_step(const hgca_selection *job) { return opens_blocks(job) ? HGCA_GROUPS * HGCA_LANES : LEAST_UNIT; }

/* Work of a unit: so much that every thread gets some units of a stage. */
static int64_t unit_work(const hgca_selection *jobs, int32_t count) {
    int64_t all = 0;
    for (int32_t j = 0; j < count; j++) all += work_of(&jobs[j], groups_of(&jobs[j])) * jobs[j].rows.kv_heads;
    return all / ((int64_t)hgca_threads() * UNITS_PER_THREAD) + 1;
}

/* Where blocks are opened units may be large, as little of one is looked at. */
static int32_t units_of(const hgca_selection *job, int64_t each) {
    const int64_t groups = groups_of(job), steps = hgca_up(groups, unit_step(job)) / unit_step(job);
    each = hgca_smaller(each, SCANNED_WORK * (opens_blocks(job) ? HGCA_WIDE_UNIT : HGCA_UNIT));
    const int64_t units = hgca_smaller((work_of(job, groups) + each - 1) / each, steps);
    return units > 0 ? (int32_t)units : 1; /* someone has to finish a head */
}

/* The group unit i of `units` begins with. */
static int64_t unit_begins(const hgca_selection *job, int64_t i, int64_t units) {
    const int64_t groups = groups_of(job), at = groups_for(job, work_of(job, groups) * i / units);
    return hgca_smaller(i < units ? hgca_up(at, unit_step(job)) : groups, groups);
}

static hgca_mean_scores take_scores(hgca_layout *at, int64_t queries, int64_t count) {
    return (hgca_mean_scores){
        .score = take(at, 2 * queries * hgca_score_room(count)),
        .max = take(at, 4 * queries),
        .sum = take(at, 4 * queries),
        .weight = take(at, 4 * hgca_score_room(count)),
    };
}

static hgca_scored take_scored(hgca_layout *at, int64_t queries, int64_t count, int spread) {
    hgca_scored scored = {.count = count, .mean = take_scores(at, queries, count)};
    scored.raw = take(at, spread ? 4 * queries * hgca_score_room(count) : 0);
    scored.spread = take(at, spread ? 4 * queries * hgca_score_room(count) : 0);
    scored.reach = spread ? take_scores(at, queries, count) : scored.mean;
    return scored;
}

static void lay_out_unit(hgca_layout *at, hgca_head *h, hgca_unit *u, const hgca_selection *job, int64_t groups, int64_t clustered) {
    const int64_t queries = job->rows.heads / job->rows.kv_heads, blocks = opens_blocks(job) ? clustered / HGCA_GROUPS : 0;
    hgca_unit own = {
        .head = h,
        .groups = groups,
        .clustered = clustered,
        .block = take_scored(at, queries, blocks, 1),
        .closed = take(at, hgca_score_room(blocks) / 8),
        .open = take(at, 4 * hgca_score_room(clustered) / HGCA_LANES),
        .group = take_scored(at, queries, clustered, job->spread_codes != NULL),
        .taken = take(at, 4 * groups),
        .passed = take(at, hgca_score_room(clustered) / 8),
        .score = take(at, 2 * queries * HGCA_LANES * groups),
        .chosen = take(at, 2 * groups),
        .rows = take(at, 4 * HGCA_LANES * groups),
        .behind = take(at, 4 * HGCA_LANES * groups),
        .weight = take(at, 4 * HGCA_LANES * groups),
        .max = take(at, 4 * queries),
        .sum = take(at, 4 * queries),
        .scratch = take(at, groups > HGCA_UNIT ? 4 * HGCA_QUERIES * HGCA_LANES * groups : 0),
        .left_sum = take(at, 4 * queries),
        .closed_sum = take(at, 4 * queries),
        .bins = take(at, (int64_t)sizeof *u->bins),
    };
    if (at->base) *u = own;
}

static void place_queries(hgca_head *h, float *query, float *mean_query, float *near_query, float *code_query,
                          float *spread_query) {
    const hgca_attention *rows = &h->job->rows;
    const float scale = hgca_score_scale(rows), near_scale = h->job->near ? hgca_score_scale(h->job->near) : scale;
    const int64_t dim = rows->key_dim, width = hgca_code_width(dim);
    for (int64_t q = 0; q < h->queries; q++) {
        const float *from = rows->query + ((int64_t)h->head * h->queries + q) * dim;
        h->kernel->place(from, scale, rows->key_dim, query + q * hgca_query_width(dim, rows->dtype));
        if (h->mean_kernel) h->mean_kernel->place(from, scale, rows->key_dim, mean_query + q * hgca_query_width(dim, h->job->mean_dtype));
        if (h->near_kernel) h->near_kernel->place(from, near_scale, rows->key_dim, near_query + q * hgca_query_width(dim, h->job->near->dtype));
        for (int64_t d = 0; d < width; d++) code_query[q * width + d] = d < dim ? from[d] * scale : 0.0f;
    }
    h->query = query;
    h->mean_query = mean_query;
    h->near_query = near_query;
    h->code_query = code_query;
    h->spread_query = spread_query;
    for (int64_t i = 0; spread_query && i < h->queries * width; i++) spread_query[i] = code_query[i] * code_query[i];
}

static void lay_out_head(hgca_layout *at, const hgca_selection *job, hgca_head *h, hgca_unit *units, int64_t each) {
    const int64_t queries = job->rows.heads / job->rows.kv_heads, dim = job->rows.key_dim;
    const int32_t count = units_of(job, each);
    float *query = take(at, 4 * queries * hgca_query_width(dim, job->rows.dtype));
    float *mean_query = take(at, 4 * queries * hgca_query_width(dim, job->mean_dtype));
    float *near_query = take(at, job->near ? 4 * queries * hgca_query_width(dim, job->near->dtype) : 0);
    float *code_query = take(at, 4 * queries * hgca_code_width(dim));
    float *spread_query = job->spread_codes || opens_blocks(job) ? take(at, 4 * queries * hgca_code_width(dim)) : NULL;
    float *total = take(at, 4 * queries);
    hgca_partial *partials = take(at, (int64_t)sizeof *partials * (HGCA_PARTS * count + HGCA_READ + 1));
    if (at->base) {
        h->total = total;
        h->partials = partials;
        place_queries(h, query, mean_query, near_query, code_query, spread_query);
    }
    const int64_t clustered = job->gate == HGCA_GATE_NONE ? 0 : hgca_scored_groups(job);
    for (int32_t i = 0; i < count; i++) {
        const int64_t first = unit_begins(job, i, count), groups = unit_begins(job, i + 1, count) - first;
        const int64_t mine = clustered > first ? hgca_smaller(clustered - first, groups) : 0;
        lay_out_unit(at, h, at->base ? &units[i] : NULL, job, groups, mine);
        for (int k = 0; k < HGCA_PARTS; k++) {
            hgca_partial partial = take_partial(at, queries, hgca_padded(job->rows.value_dim));
            if (at->base) partials[HGCA_PARTS * i + k] = partial;
        }
        if (at->base) {
            units[i].first = first;
            units[i].index = i;
        }
    }
    for (int k = 0; k <= HGCA_READ; k++) {
        hgca_partial rest = take_partial(at, queries, hgca_padded(job->rows.value_dim));
        if (at->base) partials[HGCA_PARTS * count + k] = rest;
    }
}

static const hgca_kernel *mean_kernel(const hgca_selection *job) {
    const hgca_attention mean = hgca_mean_rows(job);
    return hgca_kernel_for(&mean, 0);
}

/* Asked with the query it is for. */
static const hgca_kernel *near_kernel(const hgca_selection *job) {
    hgca_attention near = *job->near;
    near.query = job->rows.query;
    return hgca_kernel_for(&near, 0);
}

static void lay_out(hgca_layout *at, const hgca_selection *jobs, int32_t count, hgca_selecting **result) {
    const int64_t each = unit_work(jobs, count);
    int64_t heads = 0, units = 0;
    int32_t first_stage = HGCA_STAGE_GROUPS;
    for (int32_t j = 0; j < count; j++) {
        if (opens_blocks(&jobs[j])) first_stage = HGCA_STAGE_BLOCKS;
        heads += jobs[j].rows.kv_heads;
        units += (int64_t)jobs[j].rows.kv_heads * units_of(&jobs[j], each);
    }
    hgca_selecting *w = take(at, sizeof *w);
    hgca_selection *own = take(at, (int64_t)sizeof *own * count);
    hgca_attention *near = take(at, (int64_t)sizeof *near * count);
    _Atomic int32_t *heads_left = take(at, (int64_t)sizeof *heads_left * count);
    hgca_head *all = take(at, (int64_t)sizeof *all * heads);
    hgca_unit *all_units = take(at, (int64_t)sizeof *all_units * units);
    int32_t *order = take(at, (int64_t)sizeof *order * units * (HGCA_STAGES - first_stage));
    if (w) {
        memset(w, 0, sizeof *w);
        memcpy(own, jobs, sizeof *own * (size_t)count);
        for (int32_t j = 0; j < count; j++)
            if (own[j].near) own[j].near = memcpy(&near[j], own[j].near, sizeof *near);
        *w = (hgca_selecting){.heads = all, .units = all_units, .order = order, .unit_count = (int32_t)units, .first_stage = first_stage};
        w->started.batch.run = hgca_run_selection;
        w->started.batch.pieces = (int32_t)(units * (HGCA_STAGES - first_stage));
        *result = w;
    }
    int32_t unit = 0, head = 0;
    for (int32_t j = 0; j < count; j++) {
        const hgca_selection *job = &jobs[j];
        const int32_t each_head = units_of(job, each);
        if (!w) { /* all heads of a job take the same */
            hgca_layout one = {NULL, 0};
            lay_out_head(&one, job, NULL, NULL, each);
            at->used += one.used * (size_t)job->rows.kv_heads;
            continue;
        }
        const int gated = job->clustered > 0 && job->gate != HGCA_GATE_NONE && !job->pages;
        const hgca_kernel *kernel = hgca_kernel_for(&own[j].rows, 0);
        const hgca_kernel *mean = gated ? mean_kernel(&own[j]) : NULL, *close = job->near ? near_kernel(&own[j]) : NULL;
        atomic_init(&heads_left[j], job->rows.kv_heads);
        for (int32_t i = 0; i < job->rows.kv_heads; i++, head++, unit += each_head) {
            hgca_head *h = &all[head];
            memset(h, 0, sizeof *h);
            h->job = &own[j];
            h->head = i;
            h->queries = job->rows.heads / job->rows.kv_heads;
            h->first_unit = unit;
            h->units = each_head;
            h->kernel = kernel, h->mean_kernel = mean, h->near_kernel = close;
            h->near_rows = near_rows(job, i);
            h->heads_left = &heads_left[j];
            for (int s = 0; s < HGCA_STAGES; s++) atomic_init(&h->left[s], each_head);
            atomic_init(&h->stage, first_stage);
            lay_out_head(at, job, h, &all_units[unit], each);
        }
    }
    if (w) hgca_order_pieces(w, (int32_t)heads);
}

int hgca_start_selected(const hgca_selection *jobs, int32_t count, int64_t *ticket) {
    if (count < 1 || jobs == NULL || ticket == NULL) return HGCA_BAD_ARGUMENT;
    for (int32_t j = 0; j < count; j++) {
        int status = check(&jobs[j]);
        if (status) return status;
    }
    hgca_layout need = {NULL, 0};
    hgca_selecting *w = NULL;
    lay_out(&need, jobs, count, &w);
    hgca_layout at = {hgca_take_memory(need.used), 0};
    if (at.base == NULL) return HGCA_NO_MEMORY;
    lay_out(&at, jobs, count, &w);
    hgca_submit(&w->started, ticket);
    return HGCA_OK;
}
