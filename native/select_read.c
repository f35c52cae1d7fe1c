/* The last stage of attention over chosen rows (select.c): rows are read exactly, all others enter as an estimate. */
#include <math.h>
#include <string.h>

#include "codes.h"
#include "selecting.h"

enum { PREFETCHED = 128 << 10 }; /* bytes of rows: what is read first stays in the second level */

/* What all that is left out would hold if it were spread evenly is what estimates are measured by. A group not taken enters with
 * its own mean row from so many times a group's share on, else with its block's mean value. Measured: 8 times half the bytes at
 * 128k, and a KL of .0024 in place of .0022 at 8k; where blocks stay closed 32 cost no accuracy (docs/log.md). */
static const float ESTIMATE = 2.0f, ESTIMATE_OPENED = 32.0f;

/* Where blocks stay closed, a group or block below this much of its share does not enter: all of these together hold no more than
 * this much of what is left out. */
static const float NEGLIGIBLE = 0.05f;

/* Rows of less than so many times the least weight that is read are light: they tell most of what is not read. */
static const float LIGHT = 2.0f;

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

/* The rows that are read, into u->rows, light ones behind the others. They are asked for as soon as they are known: a kernel fetches the
 * tile after the one it works on, which is late for single rows. */
static int64_t list_chosen(hgca_unit *u, int64_t *light) {
    const hgca_head *h = u->head;
    const hgca_selection *job = h->job;
    const hgca_attention *rows = &job->rows;
    const int64_t size = hgca_number_bytes(rows->dtype);
    hgca_listing listing = {
        .groups = u->taken,
        .count = u->taken_count,
        .weight = !hgca_scans(h) || h->edge.all ? NULL : u->weight,
        .least = h->edge.least,
        .above = h->edge.above,
        .light = job->block_mean ? LIGHT * h->edge.least : 0.0f,
        .room = u->room,
        .order = job->order ? job->order + h->head * job->order_head_stride : NULL,
        .clustered = job->clustered,
        .end = job->indexed,
        .key = (const char *)rows->key + h->head * rows->key_head_stride,
        .value = (const char *)rows->value + h->head * rows->value_head_stride,
        .key_row_stride = rows->key_row_stride,
        .value_row_stride = rows->value_row_stride,
        .key_bytes = rows->key_dim * size,
        .value_bytes = rows->value_dim * size,
        .fetched = PREFETCHED / hgca_row_bytes(rows),
        .rows = u->rows,
        .behind = u->behind,
        .chosen = u->chosen,
    };
    const int64_t count = hgca_selection_kernels()->list(&listing);
    u->stats.bytes += listing.looked_up * (int64_t)sizeof *job->order;
    *light = listing.light_rows;
    return count;
}

/* Pages taken, as runs into u->rows and behind their beginnings; neighbours are one run. */
static int64_t list_pages(hgca_unit *u, hgca_piece *piece) {
    int32_t *run = u->behind;
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

static void read_chosen(hgca_unit *u, hgca_partial to, hgca_partial to_light) {
    const hgca_head *h = u->head;
    const hgca_attention *rows = &h->job->rows;
    int64_t light = 0;
    hgca_piece heavy = hgca_piece_of(h, rows, h->query, to), rest = hgca_piece_of(h, rows, h->query, to_light);
    const int64_t count = h->job->pages ? list_pages(u, &heavy) : list_chosen(u, &light);
    heavy.row = u->rows;
    heavy.count = count - light;
    h->kernel->piece(&heavy);
    rest.row = u->rows + heavy.count;
    rest.count = light;
    if (light) h->kernel->piece(&rest);
    else hgca_empty(h, to_light);
    u->stats.read = count;
    u->stats.bytes += count * hgca_row_bytes(rows);
}

/* Mean values of the head's blocks. */
static const char *block_means(const hgca_head *h) { return (const char *)h->job->block_mean + h->head * h->job->block_mean_head_stride; }

/* A partial that values are to be added to, with weights relative to max, in octaves, and `more` of them. */
static void begin_guess(const hgca_head *h, hgca_partial to, const float *max, float more) {
    for (int32_t q = 0; q < h->queries; q++) to.max[q] = max[q] + more;
    memset(to.out, 0, sizeof(float) * (size_t)(hgca_padded(h->job->rows.value_dim) * h->queries));
}

/* Groups that hold next to nothing each: their values are about their block's mean. */
static int64_t pass_groups(hgca_unit *u, hgca_partial to) {
    const hgca_head *h = u->head;
    const int64_t dim = h->job->rows.value_dim, scored = hgca_score_room(u->group.count);
    int64_t count = 0;
    for (int64_t i = 0; i < scored; i += HGCA_LANES) count += __builtin_popcount(u->passed[i / HGCA_LANES]);
    if (count == 0) return 0;
    begin_guess(h, to, u->group.mean.max, HGCA_GROUP_OCTAVES);
    hgca_passing passing = {
        .score = u->group.mean.score,
        .passed = u->passed,
        .open = u->open,
        .count = scored,
        .queries = h->queries,
        .dim = h->job->rows.value_dim,
        .mean = block_means(h),
        .out = to.out,
        .sum = to.sum,
    };
    hgca_selection_kernels()->pass_by(&passing);
    u->stats.bytes += passing.blocks * 2 * dim;
    return count;
}

/* Weights by mean keys, of everything. */
static void weigh_means(hgca_unit *u, const hgca_scored *of, float octaves) {
    const hgca_head *h = u->head;
    float share[HGCA_UNIT * HGCA_LANES], total = 0.0f;
    for (int32_t q = 0; q < h->queries; q++) share[q] = hgca_share(of->mean.max[q] + octaves, h->total[q]);
    hgca_weighing weighing = {
        .score = of->mean.score,
        .count = hgca_score_room(of->count),
        .queries = h->queries,
        .share = share,
        .least = INFINITY, /* bins have done their work */
        .weight = of->mean.weight,
        .rows = u->bins->rows,
        .mass = u->bins->mass,
        .total = &total,
    };
    hgca_selection_kernels()->weigh(&weighing);
}

/* Groups not taken stand for 16 rows each: those of some weight with their own mean key and value. */
static void guess_groups(hgca_unit *u, hgca_partial to, hgca_partial passed) {
    const hgca_head *h = u->head;
    const int64_t scored = h->job->pages ? 0 : hgca_score_room(u->group.count);
    uint32_t (*lanes)(const float *, float) = hgca_selection_kernels()->lanes;
    const float each = (1.0f - h->job->mass) / (float)hgca_scored_groups(h->job);
    const float own = (u->block.count ? ESTIMATE_OPENED : ESTIMATE) * each;
    int64_t count = 0;
    if (scored && h->job->block_mean) weigh_means(u, &u->group, HGCA_GROUP_OCTAVES);
    for (int64_t i = 0; i < scored; i += HGCA_LANES) {
        uint16_t *bits = &u->passed[i / HGCA_LANES];
        const uint32_t some = *bits & (h->job->block_mean ? lanes(u->group.mean.weight + i, own) : 0xffff);
        *bits &= (uint16_t)~some;
        if (u->block.count) {
            const uint32_t enter = lanes(u->group.mean.weight + i, NEGLIGIBLE * each);
            u->stats.estimated += __builtin_popcount(*bits & ~enter);
            *bits &= (uint16_t)enter;
        }
        for (uint32_t left = some; left; left &= left - 1) u->rows[count++] = (int32_t)hgca_group_at(u, i + __builtin_ctz(left));
    }
    hgca_empty(h, to);
    hgca_empty(h, passed);
    u->stats.estimated += count + (scored ? pass_groups(u, passed) : 0);
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
    if (!job->block_mean || !hgca_scans(h) || h->edge.all || u->taken_count == 0) return;
    begin_guess(h, to, u->max, 0.0f);
    hgca_leaving leaving = {
        .score = u->score,
        .groups = u->taken,
        .count = u->taken_count,
        .chosen = u->chosen,
        .queries = h->queries,
        .dim = job->rows.value_dim,
        .mean = block_means(h),
        .out = to.out,
        .sum = to.sum,
    };
    hgca_selection_kernels()->leave(&leaving);
    u->stats.bytes += leaving.blocks * 2 * job->rows.value_dim;
}

/* Closed blocks, but for those that hold next to nothing: 128 rows with the mean value of their block. */
static void guess_closed(hgca_unit *u, hgca_partial to) {
    const hgca_head *h = u->head;
    const int64_t dim = h->job->rows.value_dim, room = hgca_score_room(u->block.count);
    hgca_empty(h, to);
    if (room == 0) return;
    const float each = (1.0f - h->job->mass) / (float)(h->job->clustered / HGCA_BLOCK);
    begin_guess(h, to, u->block.mean.max, HGCA_BLOCK_OCTAVES);
    weigh_means(u, &u->block, HGCA_BLOCK_OCTAVES);
    for (int64_t i = 0; i < room; i += HGCA_LANES) {
        uint16_t *bits = &u->closed[i / HGCA_LANES];
        u->stats.estimated += HGCA_GROUPS * __builtin_popcount(*bits);
        *bits &= (uint16_t)hgca_selection_kernels()->lanes(u->block.mean.weight + i, NEGLIGIBLE * each);
        u->stats.bytes += __builtin_popcount(*bits) * 2 * dim;
    }
    const hgca_closing closing = {
        .score = u->block.mean.score,
        .closed = u->closed,
        .count = room,
        .queries = h->queries,
        .dim = h->job->rows.value_dim,
        .mean = block_means(h) + 2 * dim * (u->first / HGCA_GROUPS),
        .out = to.out,
        .sum = to.sum,
    };
    hgca_selection_kernels()->close(&closing);
}

void hgca_read_rows(hgca_unit *u) {
    hgca_partial *to = u->head->partials + HGCA_PARTS * u->index;
    read_chosen(u, to[HGCA_READ], to[HGCA_LIGHT]);
    guess_groups(u, to[HGCA_GUESSED], to[HGCA_PASSED]);
    guess_left(u, to[HGCA_LEFT]);
    guess_closed(u, to[HGCA_CLOSED]);
}
