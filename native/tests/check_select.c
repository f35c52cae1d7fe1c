/* Random choices of rows. Where everything is wanted the result is that of dense attention; elsewhere what is read stays
 * within its bounds, the result within the values', and the same call gives the same bytes. Indexes are allocated to the
 * byte, like the rows. */
#include "check_select.h"

#include "failures.h"
#include "hgca.h"
#include "problem.h"

enum { BLOCK = HGCA_BLOCK, GROUP = HGCA_LANES };


static int64_t up(int64_t n, int64_t each) { return (n + each - 1) / each; }

/* Spans of some clusterings begin with blocks whose scales are the same. */
static int share_scales(hgca_selection *job, hgca_codes encode, int64_t clustered) {
    int bad = 0;
    job->span = (int32_t)(clustered / 256 % 3 * 2), job->shared = job->span - (int32_t)(clustered / 512 % 2) * (job->span > 0);
    for (int64_t first = 0; job->span && first < clustered; first += job->span * BLOCK) {
        const int64_t shared = job->shared * BLOCK, left = clustered - first;
        encode.of.first = first, encode.of.count = left < shared ? left : shared, encode.shared = job->span;
        bad |= hgca_encode(&encode);
    }
    return bad;
}

static void *room(int64_t bytes) { return must(malloc((size_t)(bytes ? bytes : 1))); }

/* An index of the first rows of a problem, as the description takes it. */
static void make_index(hgca_selection *job, const problem *p, int64_t indexed, int64_t clustered, int64_t apart) {
    const hgca_attention *rows = &p->job;
    const int64_t heads = rows->kv_heads, blocks = up(indexed, BLOCK), bytes = hgca_block_bytes(rows->key_dim);
    const int64_t groups = clustered / GROUP, width = rows->key_dim + rows->value_dim;
    int32_t *order = room(4 * heads * indexed);
    char *codes = room(heads * blocks * bytes), *group_codes = room(heads * up(groups, BLOCK) * bytes);
    uint16_t *block_mean = room(2 * heads * blocks * rows->value_dim), *mean = room(2 * heads * groups * width);
    uint8_t *flag = room(heads * groups);
    int bad = 0;
    hgca_span keys_of = {.rows = rows->key, .head_stride = rows->key_head_stride, .row_stride = rows->key_row_stride,
                         .scale = rows->key_scale, .scale_head_stride = rows->scale_head_stride,
                         .scale_row_stride = rows->scale_row_stride, .count = clustered, .heads = rows->kv_heads,
                         .dim = rows->key_dim, .dtype = rows->dtype};
    hgca_span values_of = keys_of, all_keys = keys_of;
    values_of.rows = rows->value, values_of.head_stride = rows->value_head_stride, values_of.row_stride = rows->value_row_stride;
    values_of.scale = rows->value_scale, values_of.dim = rows->value_dim;
    all_keys.count = indexed;
    if (clustered) {
        hgca_clustering c = {.of = keys_of, .apart = apart, .order = order, .order_head_stride = indexed};
        bad |= hgca_cluster(&c);
    }
    for (int64_t h = 0; h < heads; h++)
        for (int64_t i = clustered; i < indexed; i++) order[h * indexed + i] = (int32_t)i;
    for (int64_t i = 0, each = BLOCK / GROUP; i < heads * groups; i++) /* whole blocks */
        flag[i] = apart > 0 && i % groups / each >= (groups - apart) / each;
    hgca_codes encode = {.of = all_keys, .order = order, .order_head_stride = indexed, .codes = codes,
                         .codes_head_stride = blocks * bytes};
    hgca_means keys = {.of = keys_of, .order = order, .order_head_stride = indexed, .mean = mean,
                       .mean_head_stride = 2 * groups * width, .mean_row_stride = 2 * width, .each = GROUP};
    hgca_means values = keys;
    values.of = values_of, values.mean = mean + rows->key_dim;
    hgca_means whole = values;
    whole.mean = block_mean, whole.mean_head_stride = 2 * blocks * rows->value_dim, whole.mean_row_stride = 2 * rows->value_dim;
    whole.of.count = indexed, whole.each = BLOCK;
    hgca_codes grouped = {.of = {.rows = mean, .head_stride = 2 * groups * width, .row_stride = 2 * width, .count = groups,
                                 .heads = rows->kv_heads, .dim = rows->key_dim, .dtype = HGCA_BF16},
                          .codes = group_codes, .codes_head_stride = up(groups, BLOCK) * bytes};
    bad |= hgca_encode(&encode) | hgca_average(&keys) | hgca_average(&values) | hgca_average(&whole) | hgca_encode(&grouped);
    bad |= share_scales(job, encode, clustered);
    const int64_t held = clustered / BLOCK, bytes_of_codes = up(held, BLOCK) * bytes;
    uint16_t *block_key = room(4 * heads * held * rows->key_dim);
    char *block_codes = room(2 * heads * bytes_of_codes);
    for (int spread = 0; spread < 2; spread++) {
        uint16_t *of = block_key + spread * heads * held * rows->key_dim;
        hgca_means wide = {.of = keys_of, .order = order, .order_head_stride = indexed, .mean = of, .each = BLOCK, .spread = spread,
                           .mean_head_stride = 2 * held * rows->key_dim, .mean_row_stride = 2 * rows->key_dim};
        hgca_codes coded = {.of = {.rows = of, .head_stride = wide.mean_head_stride, .row_stride = wide.mean_row_stride, .count = held,
                                   .heads = rows->kv_heads, .dim = rows->key_dim, .dtype = HGCA_BF16},
                            .codes = block_codes + spread * heads * bytes_of_codes, .codes_head_stride = bytes_of_codes};
        bad |= hgca_average(&wide) | hgca_encode(&coded);
    }
    free(block_key);
    if (bad) exit(3);
    job->block_codes = block_codes, job->block_codes_head_stride = bytes_of_codes;
    job->block_spread_codes = block_codes + heads * bytes_of_codes, job->block_spread_codes_head_stride = bytes_of_codes;
    job->codes = codes, job->codes_head_stride = encode.codes_head_stride, job->indexed = indexed;
    job->block_mean = block_mean, job->block_mean_head_stride = whole.mean_head_stride;
    job->clustered = clustered, job->order = order, job->order_head_stride = indexed;
    job->group_codes = group_codes, job->group_codes_head_stride = grouped.codes_head_stride;
    job->mean = mean, job->mean_head_stride = keys.mean_head_stride, job->mean_row_stride = 2 * width;
    job->mean_dtype = HGCA_BF16, job->apart = flag, job->apart_head_stride = groups;
}

static void drop_index(hgca_selection *job, const void *block_mean, const void *block_codes) {
    free((void *)(uintptr_t)block_codes);
    free((void *)(uintptr_t)job->codes);
    free((void *)(uintptr_t)block_mean);
    free((void *)(uintptr_t)job->order);
    free((void *)(uintptr_t)job->group_codes);
    free((void *)(uintptr_t)job->mean);
    free((void *)(uintptr_t)job->apart);
}

static int run(const hgca_selection *job) {
    int64_t ticket;
    int status = hgca_start_selected(job, 1, &ticket);
    return status ? status : hgca_wait(ticket);
}

/* Largest difference from dense attention over the rows and those near. */
static double dense_error(problem *p, const hgca_attention *near) {
    double worst = 0.0;
    if (near == NULL) {
        for (int h = 0; h < p->job.heads; h++) worst = worse(worst, error_of(p, h));
        return worst;
    }
    const int64_t numbers = (int64_t)p->job.heads * p->job.value_dim;
    float *out = room(4 * numbers), *lse = room(4 * p->job.heads);
    hgca_attention both[2] = {p->job, *near};
    both[0].out = out, both[0].lse = lse, both[1].query = p->job.query, both[1].joins = 1;
    int64_t ticket;
    if (hgca_start(both, 2, &ticket) || hgca_wait(ticket)) worst = NAN;
    for (int64_t i = 0; i < numbers; i++) worst = worse(worst, fabs((double)out[i] - p->job.out[i]));
    for (int h = 0; h < p->job.heads; h++)
        if (lse[h] != p->job.lse[h]) worst = worse(worst, fabs((double)lse[h] - p->job.lse[h]));
    free(out);
    free(lse);
    return worst;
}

static double largest_value(const problem *p) {
    double largest = 0.0;
    const int64_t numbers = p->job.rows * p->job.kv_heads * p->job.value_dim;
    for (int64_t i = 0; i < numbers; i++) largest = fmax(largest, fabs(p->values[i]));
    return largest;
}

/* What must hold whatever was chosen. */
static const char *bounds(const hgca_selection *job, const float *out, const float *lse, double largest) {
    const hgca_attention *rows = &job->rows;
    const int64_t behind = rows->rows - job->indexed;
    int64_t read = 0;
    for (int h = 0; h < rows->kv_heads; h++) {
        read += job->rows_read[h];
        if (job->rows_read[h] < behind || job->rows_read[h] > rows->rows) return "rows read";
        if (job->gate != HGCA_GATE_READ && job->rows_read[h] > behind + job->most) return "more rows than most";
    }
    if (read != job->stats->read || job->stats->scanned > job->indexed * rows->kv_heads) return "statistics";
    if (job->stats->read + GROUP * job->stats->estimated > rows->rows * rows->kv_heads) return "estimated and read";
    for (int64_t i = 0; i < (int64_t)rows->heads * rows->value_dim; i++)
        if (!(fabs(out[i]) <= largest * 1.02 + 1e-3)) return "a result beyond the values";
    for (int h = 0; h < rows->heads; h++)
        if (!(job->read_lse[h] <= lse[h] + 1e-4f)) return "more read than there is";
    return NULL;
}

/* Lists that somebody else made: every other row, and what the choice's statistics then say. */
static const char *told(const hgca_selection *job, hgca_relay relay) {
    const int32_t heads = job->rows.kv_heads;
    const int64_t each = (job->rows.rows + 1) / 2;
    int64_t *start = room(8 * (heads + 1)), *read = room(8 * heads);
    int32_t *row = room(4 * (heads * each + 1));
    float *lse = room(4 * job->rows.heads);
    for (int64_t h = 0; h <= heads; h++) start[h] = h * each;
    for (int64_t i = 0; i < heads * each; i++) row[i] = (int32_t)(2 * (i % each));
    hgca_selection_stats stats = {.groups = 9};
    hgca_selection to = *job;
    to.stats = &stats, to.rows_read = read, to.read_lse = lse;
    relay.chosen = NULL, relay.told = &to, relay.scored_bytes = 100, relay.row_bytes = 3;
    relay.far.lists = heads, relay.far.row_start = start, relay.far.row = row, relay.far.run = NULL;
    hgca_run_relay(&relay);
    const char *wrong = relay.status ? "a relay of lists" : NULL;
    for (int h = 0; h < heads && !wrong; h++)
        if (read[h] != each) wrong = "rows that lists name";
    if (!wrong && (memcmp(lse, relay.lse, 4 * (size_t)job->rows.heads) || stats.read != heads * each || stats.groups))
        wrong = "what is told of lists";
    if (!wrong && stats.bytes != 3 * heads * each + 100) wrong = "bytes of lists";
    free(start), free(read), free(row), free(lse);
    return wrong;
}

static double apart(const float *a, const float *b, int64_t count) {
    double most = 0.0;
    for (int64_t i = 0; i < count; i++)
        if (a[i] != b[i]) most = fmax(most, fabs((double)a[i] - (double)b[i]));
    return most;
}

/* Several relays as one job, one of which chooses: as each by itself; and who is wrong among them. Units are cut elsewhere than
 * in a job of its own: scores are rounded relative to their unit's largest, so of rows of about one weight others may be
 * chosen. What is compared number by number is therefore a choice of everything, every row, and none. */
static const char *several(const hgca_relay *relay, double largest) {
    enum { COUNT = 4 };
    const int64_t heads = relay->far.heads, numbers = heads * relay->far.value_dim;
    hgca_relay each[COUNT], *all[COUNT];
    hgca_selection everything = *relay->chosen; /* whose counts are nobody's: each job has its own */
    everything.rows_read = NULL, everything.read_lse = NULL, everything.stats = NULL;
    everything.mass = everything.gate_mass = everything.open_mass = 1.0f, everything.most = everything.gate_most = 1 << 30;
    float *out = room(4 * numbers * COUNT), *lse = room(4 * heads * COUNT);
    for (int i = 0; i < COUNT; i++) {
        each[i] = *relay, all[i] = &each[i];
        each[i].out = out + i * numbers, each[i].lse = lse + i * heads;
        each[i].chosen = i % 2 ? NULL : i ? &everything : relay->chosen;
        if (i == 3) each[i].far.rows = 0;
    }
    hgca_run_relays((hgca_relay *const *)all, COUNT);
    const char *wrong = each[0].status ? "a choice among several relays" : bounds(relay->chosen, out, lse, largest);
    for (int i = 1; i < COUNT && !wrong; i++) {
        hgca_relay own = each[i];
        own.out = relay->out, own.lse = relay->lse;
        hgca_run_relay(&own);
        const double most = 1e-4 * (1.0 + largest); /* rows are added up in another order */
        if (own.status || each[i].status || !(apart(own.out, each[i].out, numbers) <= most) ||
            !(apart(own.lse, each[i].lse, heads) <= most))
            wrong = "several relays at once";
    }
    each[1].query = NULL;
    hgca_run_relays((hgca_relay *const *)all, COUNT);
    if (!wrong && (each[1].status != HGCA_BAD_ARGUMENT || each[0].status || each[2].status || each[3].status))
        wrong = "a relay without a query among several";
    free(out);
    free(lse);
    return wrong;
}

/* The same through a relay, whose buffers are others: a choice, every row, and none. */
static const char *relayed(const hgca_selection *job, double largest) {
    const hgca_attention *rows = &job->rows;
    const size_t numbers = (size_t)rows->heads * (size_t)rows->value_dim;
    float *out = room(4 * (int64_t)numbers), *lse = room(4 * rows->heads);
    hgca_relay relay = {.chosen = job, .far = *rows, .query = rows->query, .out = out, .lse = lse, .beside = job->beside,
                        .scale = rows->scale, .softcap = rows->softcap};
    const char *wrong = NULL;
    int64_t ticket;
    for (int all = 0; all < 2 && !wrong; all++) {
        if (all) relay.chosen = NULL;
        memset(out, 0x55, 4 * numbers);
        hgca_run_relay(&relay);
        if (all ? hgca_start(rows, 1, &ticket) || hgca_wait(ticket) : run(job)) wrong = "what a relay is compared with";
        if (relay.status || relay.ns < 0 || memcmp(out, rows->out, 4 * numbers) || memcmp(lse, rows->lse, 4 * (size_t)rows->heads))
            wrong = all ? "a relay of every row" : "a relay of a choice";
    }
    if (!wrong) wrong = told(job, relay);
    relay.chosen = job;
    if (!wrong) wrong = several(&relay, largest);
    relay.chosen = NULL, relay.far.rows = 0;
    hgca_run_relay(&relay);
    for (int h = 0; h < rows->heads && !wrong; h++)
        if (relay.status || lse[h] != -INFINITY || out[(size_t)h * (size_t)rows->value_dim] != 0.0f) wrong = "a relay of nothing";
    relay.query = NULL;
    hgca_run_relay(&relay);
    if (!wrong && relay.status != HGCA_BAD_ARGUMENT) wrong = "a relay without a query";
    free(out);
    free(lse);
    return wrong;
}

static const char *one(uint64_t seed) {
    uint64_t state = seed * 2654435761u + 1;
    shape s = {.kv_heads = 1 + pick(&state, 3), .group = 1 + pick(&state, 6), .rows = pick(&state, pick(&state, 3) ? 300 : pick(&state, 3) ? 2600 : 9000),
               .key_dim = 1 + pick(&state, 140), .value_dim = 1 + pick(&state, 140), .dtype = pick(&state, 4), .tokens = 1,
               .exact = pick(&state, 2), .gap = pick(&state, 4), .softcap = pick(&state, 4) ? 0.0f : 3.0f};
    if (seed % 40 == 7) /* so many units that they are worked on head by head */
        s.kv_heads = 3, s.group = 1, s.rows = 40000 + s.rows, s.key_dim = 1 + s.key_dim % 8, s.value_dim = 1 + s.value_dim % 8;
    shape other = s;
    other.rows = pick(&state, 300), other.dtype = pick(&state, 4), other.lists = pick(&state, 2), other.runs = pick(&state, 2);
    problem p = make(&s, seed), close = make(&other, seed + 1);
    int64_t rows_read[4], indexed = pick(&state, 3) ? s.rows : pick(&state, s.rows + 1);
    int64_t clustered = pick(&state, 3) ? indexed / 256 * 256 : 0;
    const int64_t numbers = (int64_t)p.job.heads * s.value_dim;
    hgca_selection_stats stats;
    float *read_lse = room(4 * p.job.heads), *beside = room(4 * p.job.heads), *before = room(4 * numbers);
    hgca_selection job = {.rows = p.job, .near = pick(&state, 2) ? &close.job : NULL, .mass = 1.0f, .most = 1 << 30,
                          .gate = pick(&state, 3), .gate_mass = 1.0f, .gate_most = 1 << 30, .read_lse = read_lse,
                          .rows_read = rows_read, .stats = &stats};
    make_index(&job, &p, indexed, clustered, clustered / 512);
    const void *block_mean = job.block_mean, *block_codes = job.block_codes;
    job.open_mass = 1.0f;
    if (job.gate == HGCA_GATE_NONE || pick(&state, 2)) job.block_codes = NULL;
    const char *wrong = NULL;
    const double largest = fmax(largest_value(&p), largest_value(&close));
    double tolerance = s.dtype == HGCA_I8 || other.dtype == HGCA_I8 ? 5e-4 : 4e-5;
    if (run(&job) || !(dense_error(&p, job.near) <= tolerance)) wrong = "everything is not dense attention";
    for (int h = 0; h < p.job.heads; h++) beside[h] = (float)uniform(&state) * 4.0f;
    job.beside = pick(&state, 2) ? beside : NULL;
    job.block_mean = job.block_codes || pick(&state, 2) ? block_mean : NULL;
    job.open_mass = 0.3f + 0.7f * (float)fabs(uniform(&state));
    job.mass = 0.05f + 0.9f * (float)fabs(uniform(&state));
    job.gate_mass = 0.05f + 0.9f * (float)fabs(uniform(&state));
    job.least = pick(&state, 40), job.most = pick(&state, 2) ? 1 << 30 : pick(&state, 200), job.gate_most = pick(&state, 40);
    if (!wrong && run(&job)) wrong = "a choice";
    if (!wrong) wrong = bounds(&job, p.job.out, p.job.lse, largest);
    memcpy(before, p.job.out, 4 * (size_t)numbers);
    if (!wrong && (run(&job) || memcmp(before, p.job.out, 4 * (size_t)numbers))) wrong = "the same call again";
    hgca_selection own_scales = job;
    own_scales.span = own_scales.shared = 0;
    if (!wrong && (run(&own_scales) || memcmp(before, p.job.out, 4 * (size_t)numbers))) wrong = "scales that each block has";
    job.near = NULL;
    if (!wrong && s.rows > 0) wrong = relayed(&job, largest);
    drop_index(&job, block_mean, block_codes);
    free(read_lse);
    free(beside);
    free(before);
    drop(&p);
    drop(&close);
    return wrong;
}

int check_select(int count, uint64_t seed) { return count_failures("choosing rows", one, count, seed); }
