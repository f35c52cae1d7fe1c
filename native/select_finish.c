/* What is found when a head's last unit has finished a stage (select.c). */
#include <math.h>
#include <string.h>

#include "selecting.h"

static const float LOG2E = 1.44269504088896341f;

/* So much of what positions scored and not read hold counts as more of the light rows (docs/log.md). */
static const float LIKE_LIGHT = 0.5f;

/* Rows behind the index are read whatever they are. */
static void read_rest(const hgca_head *h) {
    const hgca_attention *rows = &h->job->rows;
    hgca_piece piece = hgca_piece_of(h, rows, h->query, h->partials[HGCA_PARTS * h->units + HGCA_READ]);
    piece.first = h->job->indexed;
    piece.count = rows->rows - h->job->indexed;
    h->kernel->piece(&piece);
}

/* log2 of what is read in any case holds. */
static float beside(const hgca_head *h, int32_t q) {
    const float *lse = h->job->beside, far = lse ? lse[h->head * h->queries + q] : -INFINITY;
    const float near = hgca_merged_lse(&h->partials[HGCA_NEAR], HGCA_PARTS * sizeof *h->partials, h->units, q);
    return hgca_add_log2(far * LOG2E, near * LOG2E);
}

/* From the units' bins; each unit gets its part of the room in the last one. */
static hgca_edge choose_edge(const hgca_head *h, hgca_unit *units, const hgca_missing *missing, int64_t least, int64_t most, float floor) {
    hgca_bins bins = {{0}, {0}, 0.0f};
    for (int32_t i = 0; i < h->units; i++) {
        bins.total += units[i].bins->total;
        for (int b = 0; b < HGCA_BINS; b++) {
            bins.rows[b] += units[i].bins->rows[b];
            bins.mass[b] += units[i].bins->mass[b];
        }
    }
    const hgca_edge edge = hgca_choose_edge(&bins, missing, least, most, floor);
    int64_t room = edge.room;
    for (int32_t i = 0; i < h->units; i++) {
        int64_t mine = units[i].bins->rows[edge.bin];
        units[i].room = mine < room ? mine : room;
        room -= units[i].room;
    }
    return edge;
}

/* log2 of what closed blocks hold. */
static float closed_mass(const hgca_head *h, const hgca_unit *units, int32_t q) {
    float mass = -INFINITY;
    for (int32_t i = 0; i < h->units; i++)
        if (units[i].block.count) {
            const float most = units[i].block.mean.max[q] + HGCA_BLOCK_OCTAVES;
            mass = hgca_add_log2(mass, hgca_mass_log2(most, units[i].closed_sum[q]));
        }
    return mass;
}

static const hgca_scored *scored_of(const hgca_unit *u, int blocks) { return blocks ? &u->block : &u->group; }

/* Weights of what blocks or groups may hold, counted into the units' bins; the shares of everything that all may hold, added up over queries. */
static float weigh_means(hgca_head *h, hgca_unit *units, int blocks, float least) {
    const float octaves = blocks ? HGCA_BLOCK_OCTAVES : HGCA_GROUP_OCTAVES;
    float held = 0.0f, share[HGCA_UNIT * HGCA_LANES];
    for (int32_t q = 0; q < h->queries; q++) {
        float own = -INFINITY, rest = beside(h, q);
        for (int32_t i = 0; i < h->units; i++) {
            const hgca_mean_scores *scores = &scored_of(&units[i], blocks)->reach;
            if (scored_of(&units[i], blocks)->count) own = hgca_add_log2(own, hgca_mass_log2(scores->max[q], scores->sum[q]));
        }
        if (!blocks) rest = hgca_add_log2(rest, closed_mass(h, units, q));
        h->total[q] = hgca_add_log2(own + octaves, rest);
        held += hgca_share(own + octaves, h->total[q]);
    }
    for (int32_t i = 0; i < h->units; i++) {
        hgca_unit *u = &units[i];
        const hgca_mean_scores *scores = &scored_of(u, blocks)->reach;
        const int64_t count = scored_of(u, blocks)->count;
        memset(u->bins, 0, sizeof *u->bins);
        if (count == 0) continue;
        for (int32_t q = 0; q < h->queries; q++) share[q] = hgca_share(scores->max[q] + octaves, h->total[q]);
        hgca_weighing weighing = {
            .score = scores->score,
            .count = hgca_score_room(count),
            .queries = h->queries,
            .share = share,
            .least = least,
            .weight = scores->weight,
            .rows = u->bins->rows,
            .mass = u->bins->mass,
            .total = &u->bins->total,
        };
        hgca_selection_kernels()->weigh(&weighing);
    }
    return held;
}

static hgca_missing missing_sum(float kept) { return (hgca_missing){1.0f - kept, 0.0f, 1.0f}; }

static hgca_missing missing_groups(float kept) { return (hgca_missing){1.0f - kept, HGCA_GROUPS_ALIKE, HGCA_GROUPS_MOST}; }

void hgca_choose_blocks(hgca_head *h, hgca_unit *units) {
    const hgca_selection *job = h->job;
    const int64_t blocks = job->clustered / HGCA_BLOCK;
    if (!job->block_codes || blocks == 0) return;
    const hgca_missing missing = missing_groups(job->open_mass);
    const float least = hgca_least_weight(&missing, blocks), held = weigh_means(h, units, 1, least);
    h->open = choose_edge(h, units, &missing, 1, blocks, least);
    h->open.all = held != held; /* what is no number is not hidden */
}

void hgca_choose_groups(hgca_head *h, hgca_unit *units) {
    const hgca_selection *job = h->job;
    if (job->gate == HGCA_GATE_NONE || job->clustered == 0) return;
    const hgca_missing missing = job->pages ? missing_sum(job->gate_mass) : missing_groups(job->gate_mass);
    const float least = hgca_least_weight(&missing, hgca_scored_groups(job)), held = weigh_means(h, units, 0, least);
    h->gate = choose_edge(h, units, &missing, 1, job->gate_most, least);
    h->gate.all = held != held;
}

/* What is not estimated is missing altogether. */
static hgca_missing missing_rows(const hgca_selection *job) {
    return job->block_mean ? (hgca_missing){1.0f - job->mass, HGCA_ROWS_ALIKE, HGCA_ROWS_MOST} : missing_sum(job->mass);
}

void hgca_find_total(hgca_head *h, hgca_unit *units) {
    int64_t scored = 0;
    for (int32_t i = 0; i < h->units; i++) scored += units[i].taken_count * HGCA_LANES;
    const hgca_missing missing = missing_rows(h->job);
    h->least = hgca_least_weight(&missing, scored);
    h->scanned_mass = 0.0f;
    for (int32_t q = 0; q < h->queries; q++) {
        float scanned = -INFINITY, left = hgca_add_log2(beside(h, q), closed_mass(h, units, q));
        for (int32_t i = 0; i < h->units; i++) {
            const hgca_mean_scores *mean = &units[i].group.mean;
            scanned = hgca_add_log2(scanned, hgca_mass_log2(units[i].max[q], units[i].sum[q]));
            const float *sum = hgca_scans(h) ? units[i].left_sum : mean->sum; /* of groups that are read no more is known yet */
            if (units[i].group.count) left = hgca_add_log2(left, hgca_mass_log2(mean->max[q] + HGCA_GROUP_OCTAVES, sum[q]));
        }
        h->total[q] = hgca_add_log2(scanned, left);
        h->scanned_mass += hgca_share(scanned, h->total[q]);
    }
}

void hgca_choose_rows(hgca_head *h, hgca_unit *units) {
    const hgca_selection *job = h->job;
    const hgca_missing missing = missing_rows(job);
    h->edge = choose_edge(h, units, &missing, job->least, job->most, h->least);
    h->edge.all = h->scanned_mass != h->scanned_mass; /* what is no number is not hidden */
}

/* log2 of what all units' parts of a kind hold, and of the part behind them. */
static float held_by(const hgca_head *h, int kind, int behind, int32_t q) {
    return LOG2E * hgca_merged_lse(&h->partials[kind], HGCA_PARTS * sizeof *h->partials, h->units + behind, q);
}

/* What is left is no fair sample of its blocks: its weights are high where values are like those of what was read. Rows just heavy
 * enough to be read are the nearest to it that are known, and their values stand for part of what is left. */
static void let_light_stand(const hgca_head *h, float light, int32_t q) {
    if (!(light > -INFINITY)) return;
    const float left = held_by(h, HGCA_LEFT, 0, q);
    if (!(left > -INFINITY)) return;
    const float more = log2f(1.0f + LIKE_LIGHT * exp2f(left - light)), less = log2f(1.0f - LIKE_LIGHT);
    for (int32_t i = 0; i < h->units; i++) {
        h->partials[HGCA_PARTS * i + HGCA_LIGHT].max[q] += more;
        h->partials[HGCA_PARTS * i + HGCA_LEFT].max[q] += less;
    }
}

void hgca_merge_head(hgca_head *h, hgca_unit *units) {
    const hgca_selection *job = h->job;
    const int32_t count = HGCA_PARTS * h->units + HGCA_READ + 1;
    read_rest(h);
    hgca_empty(h, h->partials[HGCA_PARTS * h->units + HGCA_NEAR]);
    for (int32_t q = 0; q < h->queries; q++) {
        const int64_t to = (int64_t)h->head * h->queries + q;
        const float light = held_by(h, HGCA_LIGHT, 0, q);
        if (job->read_lse) job->read_lse[to] = hgca_add_log2(held_by(h, HGCA_READ, 1, q), light) / LOG2E;
        let_light_stand(h, light, q);
        hgca_merge(h->partials, sizeof *h->partials, count, q, &job->rows, to);
    }
    if (job->rows_read) {
        job->rows_read[h->head] = job->rows.rows - job->indexed;
        for (int32_t i = 0; i < h->units; i++) job->rows_read[h->head] += units[i].stats.read;
    }
}

/* A job's heads stand side by side, and so do their units. */
void hgca_sum_up(const hgca_head *h, const hgca_unit *units) {
    hgca_selection_stats *to = h->job->stats;
    int64_t *sums = &to->scanned;
    const int64_t rest = h->job->rows.rows - h->job->indexed;
    memset(to, 0, sizeof *to);
    for (const hgca_unit *u = units - (int64_t)h->head * h->units; u < units + (int64_t)(h->job->rows.kv_heads - h->head) * h->units; u++)
        for (size_t i = 0; i < sizeof *to / sizeof *sums; i++) sums[i] += (&u->stats.scanned)[i];
    to->read += rest * h->job->rows.kv_heads;
    to->bytes += rest * h->job->rows.kv_heads * hgca_row_bytes(&h->job->rows);
}

