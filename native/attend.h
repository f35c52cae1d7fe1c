/* A job of attention as the pool works on it. */
#ifndef HGCA_ATTEND_H
#define HGCA_ATTEND_H

#include <stdatomic.h>
#include <stdint.h>

#include "dispatch.h"
#include "flags.h"
#include "hgca.h"
#include "partial.h"
#include "tickets.h"

/* One list of one job, or some tokens of it: its query heads, its rows, the pieces they were cut into. */
typedef struct {
    const hgca_attention *job;
    float *query; /* placed: [tokens][heads]; NULL where pieces are asked for later, each has its own then */
    int32_t first_token, tokens;
    int32_t head;       /* the list's first query head */
    int32_t heads;      /* per token */
    int32_t first_piece;
    int32_t pieces;
    const hgca_kernel *kernel; /* NULL where query is */
    int64_t rows;
    int64_t rows_per_piece;
    _Atomic int32_t left; /* pieces not done: who brings it to zero merges */
} hgca_list;

typedef struct {
    int32_t list;
    int64_t entry; /* where its rows begin: an entry of row, and how many rows of that entry's run come before */
    int64_t first;
    hgca_partial partial; /* [tokens][heads] */
} hgca_part;

/* When the queries of a job were there, of hgca_now; 0: never, and nothing was attended to. Whoever starts it keeps it till it is done. */
typedef _Atomic int64_t hgca_when;

/* Work whose queries are not there yet: a strand, of as many as there are threads, brings its share of the rows into its caches, waits
 * for the queries, and attends to its share, then to what others have not begun. */
typedef struct {
    hgca_flag *flag; /* the queries are there when this is `token` */
    int32_t token;
    int64_t until; /* of hgca_now: nobody will ask any more */
    hgca_when *when;
    _Atomic int32_t *taken; /* [pieces]: somebody attends to it */
    float *query;           /* placed, of the piece a strand is at; [strands][query_floats] */
    int64_t query_floats;
    int32_t strands, pieces;
} hgca_asked;

typedef struct {
    hgca_started started;
    hgca_attention *jobs;
    int32_t job_count;
    hgca_list *lists;
    int64_t list_count;
    hgca_part *parts;
    hgca_asked asked;
} hgca_work;

/* Checked, cut and laid out, but not begun, for `strands` strands (0: none). *result is nobody's but the caller's, who hands it to
 * hgca_submit. HGCA_OK, HGCA_BAD_ARGUMENT or HGCA_NO_MEMORY. */
int hgca_make_work(const hgca_attention *jobs, int32_t count, int32_t strands, hgca_work **result);

/* A list's queries, as a kernel wants them. */
void hgca_place_queries(const hgca_list *list, const hgca_kernel *kernel, float *to);

/* A piece's part of the result, by placed queries; the last of a list merges. */
void hgca_attend_piece(hgca_work *work, int32_t index, const hgca_kernel *kernel, const float *query);

/* What a kernel is told of a piece. */
hgca_piece hgca_piece_at(const hgca_work *work, int32_t index, const float *query);

/* As hgca_start of jobs whose queries are there when *flag is `token`, which is waited for until `until`; *when says what became of it. */
int hgca_start_asked(const hgca_attention *jobs, int32_t count, hgca_flag *flag, int32_t token, int64_t until, hgca_when *when,
                     int64_t *ticket);

#endif
