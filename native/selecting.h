/* Attention over chosen rows while it is worked on: select_start.c lays it out, select_order.c says what comes first, select.c does it. */
#ifndef HGCA_SELECTING_H
#define HGCA_SELECTING_H

#include <stdatomic.h>
#include <stdint.h>

#include "choose.h"
#include "hgca.h"
#include "kernels.h"
#include "partial.h"
#include "select.h"
#include "tickets.h"

/* Blocks that may matter, their groups, codes, weights, rows (select.c). */
enum { HGCA_STAGE_BLOCKS, HGCA_STAGE_GROUPS, HGCA_STAGE_CODES, HGCA_STAGE_WEIGHTS, HGCA_STAGE_ROWS, HGCA_STAGES };

/* log2 of the rows a group and a block stand for. */
#define HGCA_GROUP_OCTAVES 4.0f
#define HGCA_BLOCK_OCTAVES 7.0f

/* Partials of a unit: its share of the near rows, rows that are read, the light ones of them, groups not taken (those of some
 * weight, and the rest), positions scored and not read, blocks that stay closed. */
enum { HGCA_NEAR, HGCA_READ, HGCA_LIGHT, HGCA_GUESSED, HGCA_PASSED, HGCA_LEFT, HGCA_CLOSED, HGCA_PARTS };

/* One KV head of one job. */
typedef struct {
    const hgca_selection *job;
    int32_t head;
    int32_t queries; /* query heads of the KV head */
    int32_t first_unit;
    int32_t units;
    const hgca_kernel *kernel, *mean_kernel, *near_kernel;
    const float *query, *mean_query, *near_query; /* placed for them */
    int64_t near_rows;
    const float *spread_query;       /* its squares, for spreads */
    const float *code_query;         /* [queries][dim rounded up to 8], in base 2 */
    float *total;                    /* [queries] log2 of everything's mass */
    float scanned_mass;              /* what the positions with scores hold of it, of all queries */
    float least;                     /* weight of a position that is counted */
    hgca_edge open, gate, edge; /* of blocks, groups, rows */
    hgca_partial *partials; /* [units][HGCA_PARTS], and then the rows behind the index */
    _Atomic int32_t left[HGCA_STAGES];
    _Atomic int32_t stage; /* the first that is not finished */
    _Atomic int32_t *heads_left; /* of its job: who brings it to zero sums the statistics up */
} hgca_head;

/* Scores as hgca_scan leaves them [queries][count, rounded up to 16], and their weights. */
typedef struct {
    uint16_t *score;
    float *max, *sum;
    float *weight;
} hgca_mean_scores;

/* A unit's groups that are looked at, or its blocks. */
typedef struct {
    hgca_mean_scores mean;  /* by their mean keys: what an estimate counts for */
    hgca_mean_scores reach; /* with what their spread adds: what a gate goes by; without spreads the same */
    float *raw, *spread;    /* [queries][count, rounded up to 16]: scores of the mean keys, variances of scores */
    int64_t count;
} hgca_scored;

/* Some of its positions: whole groups. */
typedef struct {
    hgca_head *head;
    int64_t first; /* group of 16 positions */
    int64_t groups;
    int64_t clustered; /* the first so many of them are in a clustering */
    hgca_scored block; /* blocks of 128 positions; none: all groups are looked at */
    uint16_t *closed;  /* a bit per block whose groups are not looked at */
    int32_t *open;     /* which 16 groups are, those that stand side by side, by number; ascending */
    int64_t open_count;
    hgca_scored group; /* 16 * open_count of them, but for pages that are not there */
    int32_t *taken;    /* groups whose rows may be read, ascending */
    uint16_t *passed;  /* a bit per group of `group` that is not taken */
    int64_t taken_count;
    uint16_t *score; /* [queries][16 * taken] */
    uint16_t *chosen; /* a bit per position of each group taken: it is read */
    int32_t *rows;    /* [16 * groups] */
    int32_t *behind;  /* likewise, for rows until it is known where they stand; of pages: their runs */
    float *weight;   /* [16 * taken] */
    float *max, *sum;
    float *scratch;  /* for hgca_scan */
    float *left_sum; /* of groups not taken, relative to group.mean.max */
    float *closed_sum; /* of closed blocks, relative to block.mean.max */
    hgca_bins *bins;   /* apart: nobody has to write them who lays a unit out */
    int64_t room; /* of an edge's last bin it may take: blocks, then groups, then rows */
    int32_t index; /* among its head's units */
    hgca_selection_stats stats;
} hgca_unit;

typedef struct {
    hgca_started started;
    hgca_head *heads;
    hgca_unit *units;
    int32_t *order; /* of pieces: stage * unit_count + unit (select_order.c) */
    int32_t unit_count;
    int32_t first_stage;
} hgca_selecting;

/* Groups with scores of their own; the last page may lack rows. */
static inline int64_t hgca_scored_groups(const hgca_selection *job) { return (job->clustered + HGCA_LANES - 1) / HGCA_LANES; }

/* Scores that are kept for so many groups or blocks: 16 are scored at once. */
static inline int64_t hgca_score_room(int64_t count) { return (count + HGCA_LANES - 1) / HGCA_LANES * HGCA_LANES; }

/* Group i of those that are looked at. */
static inline int64_t hgca_group_at(const hgca_unit *u, int64_t i) {
    return (int64_t)u->open[i / HGCA_LANES] * HGCA_LANES + i % HGCA_LANES;
}

/* Fills `order`, for so many heads. */
void hgca_order_pieces(const hgca_selecting *w, int32_t heads);

/* One stage of one unit. */
void hgca_run_selection(hgca_batch *batch, int32_t piece);

/* Whether codes of rows are scored. */
static inline int hgca_scans(const hgca_head *h) { return h->job->gate != HGCA_GATE_READ; }

/* Stages of a unit: which groups are looked at and taken (select_gate.c), which rows are read. */
void hgca_score_blocks(hgca_unit *unit);
void hgca_score_groups(hgca_unit *unit);
void hgca_take_groups(hgca_unit *unit); /* begins the third */
void hgca_read_rows(hgca_unit *unit);

/* What a stage's last unit does for the whole head. */
void hgca_choose_blocks(hgca_head *head, hgca_unit *units);
void hgca_choose_groups(hgca_head *head, hgca_unit *units);
void hgca_find_total(hgca_head *head, hgca_unit *units);
void hgca_choose_rows(hgca_head *head, hgca_unit *units);
void hgca_merge_head(hgca_head *head, hgca_unit *units);

/* Statistics of the job, from any head of it. */
void hgca_sum_up(const hgca_head *head, const hgca_unit *units);

/* A kernel's piece over rows of the head, and a partial over none. */
hgca_piece hgca_piece_of(const hgca_head *head, const hgca_attention *rows, const float *query, hgca_partial to);
void hgca_empty(const hgca_head *head, hgca_partial to);
int64_t hgca_row_bytes(const hgca_attention *rows);

/* The mean rows of a clustering as rows of an attention of their own. */
hgca_attention hgca_mean_rows(const hgca_selection *job);

#endif
