/* Attention jobs: checked, cut into pieces, worked on by the pool, and the pieces merged by log-sum-exp. */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "attend.h"

enum { LEAST_ROWS = 128, TILE_ROWS = 64, PIECES_PER_THREAD = 4, LARGE_ROWS = 4096, LARGE_PIECES_PER_THREAD = 16 };
enum { ASKED_PIECES_PER_THREAD = 12 }; /* of rows that are in the threads' caches: a device waits for the last piece of many threads */

/* Of more than HGCA_FEW_TOKENS tokens queries are shared out, too: these many a list, of which a piece's results are few then. */
enum { QUERIES_OF_LIST = 48 };

enum { MOST = 1 << 24 }; /* heads, widths: what keeps the sizes below in 64 bits */

static int64_t list_count(const hgca_attention *job) { return job->lists ? job->lists : job->kv_heads; }

static int32_t heads_of_list(const hgca_attention *job) { return (int32_t)(job->heads / list_count(job)); }

/* Tokens that a list is of. */
static int32_t tokens_of_list(const hgca_attention *job) {
    if (job->tokens <= HGCA_FEW_TOKENS) return job->tokens;
    const int32_t heads = heads_of_list(job);
    return heads < QUERIES_OF_LIST ? QUERIES_OF_LIST / heads : 1;
}

static int64_t turns_of(const hgca_attention *job) { return (job->tokens + tokens_of_list(job) - 1) / tokens_of_list(job); }

static int64_t list_rows(const hgca_attention *job, int64_t l) {
    if (!job->lists) return job->rows;
    if (!job->run) return job->row_start[l + 1] - job->row_start[l];
    int64_t rows = 0;
    for (int64_t i = job->row_start[l]; i < job->row_start[l + 1]; i++) rows += job->run[i];
    return rows;
}

/* Whether all of these are numbers of so many rows: the sign of one of two numbers is set if one is not. Ten thousands are looked at while
 * all threads wait. */
static int are_there(const int32_t *row, int64_t count, int64_t rows) {
    const uint32_t last = (uint32_t)(rows <= INT32_MAX ? rows - 1 : INT32_MAX);
    uint32_t signs = 0;
    for (int64_t i = 0; i < count; i++) signs |= (uint32_t)row[i] | (last - (uint32_t)row[i]);
    return signs >> 31 == 0;
}

static int check_lists(const hgca_attention *job) {
    if (job->lists % job->kv_heads || job->heads % job->lists || !job->row_start) return HGCA_BAD_ARGUMENT;
    if (job->row_start[0] < 0) return HGCA_BAD_ARGUMENT;
    for (int32_t l = 0; l < job->lists; l++)
        if (job->row_start[l + 1] < job->row_start[l]) return HGCA_BAD_ARGUMENT;
    int64_t begin = job->row_start[0], end = job->row_start[job->lists];
    if (begin < end && !job->row) return HGCA_BAD_ARGUMENT;
    int bad = 0;
    if (job->run)
        for (int64_t i = begin; i < end; i++)
            bad |= job->row[i] < 0 || job->run[i] < 0 || job->row[i] > job->rows - job->run[i];
    else bad = !are_there(job->row + begin, end - begin, job->rows);
    return bad ? HGCA_BAD_ARGUMENT : HGCA_OK;
}

int hgca_check(const hgca_attention *job) {
    if (job->rows < 0 || job->kv_heads < 1 || job->heads < 1 || job->heads % job->kv_heads || job->key_dim < 1 ||
        job->value_dim < 1 || job->dtype < HGCA_F32 || job->dtype > HGCA_I8 || job->lists < 0 || job->only_read < 0 || job->only_read > 1)
        return HGCA_BAD_ARGUMENT;
    if (job->tokens < 1 || job->causal < 0 || job->causal > 1 || (job->causal && job->rows < job->tokens))
        return HGCA_BAD_ARGUMENT;
    if (!job->query || !job->out || !job->lse || (job->rows > 0 && (!job->key || !job->value)))
        return HGCA_BAD_ARGUMENT;
    if (job->dtype == HGCA_I8 && job->rows > 0 && (!job->key_scale || !job->value_scale)) return HGCA_BAD_ARGUMENT;
    if (job->heads > MOST || job->key_dim > MOST || job->value_dim > MOST || job->tokens > MOST / job->heads)
        return HGCA_BAD_ARGUMENT;
    if (!(job->softcap >= 0.0f && job->softcap < INFINITY)) return HGCA_BAD_ARGUMENT;
    return job->lists == 0 ? HGCA_OK : check_lists(job);
}

/* Job j may join the one before it. */
static int check_joins(const hgca_attention *jobs, int32_t j) {
    const hgca_attention *job = &jobs[j];
    if (job->joins == 0) return HGCA_OK;
    if (job->joins != 1 || j == 0) return HGCA_BAD_ARGUMENT;
    const hgca_attention *before = job - 1;
    int same = job->tokens == before->tokens && job->heads == before->heads && job->value_dim == before->value_dim;
    return same ? HGCA_OK : HGCA_BAD_ARGUMENT;
}

/* `more` becomes part of `to`, exactly: HGCA, arXiv:2507.03153, section 3. A part over no rows changes nothing. */
static void join(const hgca_attention *to, const hgca_attention *more) {
    for (int64_t q = 0; q < (int64_t)to->tokens * to->heads; q++) {
        float a = to->lse[q], b = more->lse[q], top = a > b ? a : b;
        float *out = to->out + q * to->value_dim;
        const float *other = more->out + q * to->value_dim;
        if (b == -INFINITY) continue;
        float share = a == -INFINITY ? 0.0f : expf(a - top), other_share = expf(b - top), sum = share + other_share;
        share /= sum, other_share /= sum;
        for (int32_t d = 0; d < to->value_dim; d++) out[d] = out[d] * share + other[d] * other_share;
        to->lse[q] = top + logf(sum);
    }
}

static void join_all(hgca_started *started) {
    const hgca_work *w = (const hgca_work *)(const void *)started;
    for (int32_t j = 0, first = 0; j < w->job_count; j++)
        if (w->jobs[j].joins) join(&w->jobs[first], &w->jobs[j]);
        else first = j;
}

static void merge_list(hgca_work *w, hgca_list *l) {
    for (int32_t t = 0; t < l->tokens; t++)
        for (int32_t h = 0; h < l->heads; h++)
            hgca_merge(&w->parts[l->first_piece].partial, sizeof(hgca_part), l->pieces, t * l->heads + h, l->job,
                       (int64_t)(l->first_token + t) * l->job->heads + l->head + h);
}

void hgca_place_queries(const hgca_list *l, const hgca_kernel *kernel, float *to) {
    const hgca_attention *job = l->job;
    const int64_t width = hgca_query_width(job->key_dim, job->dtype);
    for (int64_t t = l->first_token; t < l->first_token + l->tokens; t++)
        for (int64_t h = 0; h < l->heads; h++, to += width)
            kernel->place(job->query + (t * job->heads + l->head + h) * job->key_dim, hgca_score_scale(job), job->key_dim, to);
}

hgca_piece hgca_piece_at(const hgca_work *w, int32_t index, const float *query) {
    const hgca_part *mine = &w->parts[index];
    const hgca_list *l = &w->lists[mine->list];
    const hgca_attention *job = l->job;
    int64_t kv_head = l->head / (job->heads / job->kv_heads);
    int64_t left = l->rows - (index - l->first_piece) * l->rows_per_piece;
    hgca_piece piece = hgca_piece_over(job, kv_head, l->heads * l->tokens, query, mine->partial);
    piece.row = job->lists ? job->row + mine->entry : NULL;
    piece.run = job->lists && job->run ? job->run + mine->entry : NULL;
    piece.first = mine->first;
    piece.count = left < l->rows_per_piece ? left : l->rows_per_piece;
    piece.group = l->heads;
    if (job->causal && job->tokens > 1) piece.unseen = job->rows - job->tokens + l->first_token + 1;
    return piece;
}

void hgca_attend_piece(hgca_work *w, int32_t index, const hgca_kernel *kernel, const float *query) {
    hgca_list *l = &w->lists[w->parts[index].list];
    const hgca_piece piece = hgca_piece_at(w, index, query);
    kernel->piece(&piece);
    if (atomic_fetch_sub(&l->left, 1) == 1) merge_list(w, l);
}

/* Queries of a list with one piece are placed by whoever does that: those of a prompt are many. */
static void run_piece(hgca_batch *batch, int32_t index) {
    hgca_work *w = (hgca_work *)(void *)batch;
    const hgca_list *l = &w->lists[w->parts[index].list];
    if (l->pieces == 1) hgca_place_queries(l, l->kernel, l->query);
    hgca_attend_piece(w, index, l->kernel, l->query);
}

/* Where each piece of a list begins. */
static void cut_list(const hgca_list *l, int64_t i, hgca_part *parts) {
    const hgca_attention *job = l->job;
    int64_t entry = job->lists ? job->row_start[i] : 0, first = 0;
    for (int32_t k = 0; k < l->pieces; k++) {
        parts[k].entry = entry;
        parts[k].first = first;
        if (!job->lists) first += l->rows_per_piece;
        else if (!job->run) entry += l->rows_per_piece;
        else {
            first += l->rows_per_piece;
            while (k + 1 < l->pieces && first >= job->run[entry]) first -= job->run[entry++];
        }
    }
}

static int32_t pieces_of(int64_t rows, int64_t rows_per_piece) {
    return (int32_t)((rows + rows_per_piece - 1) / rows_per_piece);
}

/* Floats of a list's placed queries. */
static int64_t floats_of(const hgca_list *of) {
    return (int64_t)of->heads * of->tokens * hgca_query_width(of->job->key_dim, of->job->dtype);
}

/* Memory of a list: its queries, if they are there, its pieces' results; and all that is described of it, once there is memory. Returns
 * how many pieces. */
static int32_t lay_out_list(hgca_layout *at, const hgca_list *of, int64_t i, int there, hgca_list *to, hgca_part *parts, int32_t index) {
    const hgca_attention *job = of->job;
    const int64_t queries = (int64_t)of->heads * of->tokens, value_width = hgca_padded(job->value_dim);
    float *query = there ? hgca_take(at, sizeof(float) * (size_t)floats_of(of)) : NULL;
    const int32_t pieces = pieces_of(of->rows, of->rows_per_piece);
    if (to) {
        *to = *of;
        to->query = query, to->pieces = pieces;
        atomic_init(&to->left, pieces);
        if (pieces > 1 && there) hgca_place_queries(to, to->kernel, query);
        cut_list(to, i, parts);
    }
    for (int32_t k = 0; k < pieces; k++) {
        float *out = hgca_take(at, sizeof(float) * (size_t)(queries * value_width));
        float *rest = hgca_take(at, sizeof(float) * 2 * (size_t)queries);
        if (to) parts[k].list = index, parts[k].partial = (hgca_partial){out, rest, rest + queries};
    }
    return pieces;
}

/* Rows that a list of the tokens from `first` on reads: of a dense causal one only those its last token sees. */
static int64_t rows_seen(const hgca_attention *job, int64_t rows, int32_t first, int32_t tokens) {
    return job->causal && !job->lists ? rows - job->tokens + first + tokens : rows;
}

/* rows_of: rows of each list, one job's after the other's; strands: as of hgca_make_work. */
static void lay_out(hgca_layout *at, const hgca_attention *jobs, int32_t count, int32_t strands, const int64_t *rows_of,
                    int64_t rows_per_piece, hgca_work **result) {
    int64_t lists = 0, pieces = 0;
    for (int64_t j = 0, of = 0; j < count; j++)
        for (int64_t l = 0; l < list_count(&jobs[j]); l++, of++) {
            const int32_t each = tokens_of_list(&jobs[j]);
            for (int32_t first = 0; first < jobs[j].tokens; first += each, lists++) {
                const int32_t left = jobs[j].tokens - first;
                pieces += pieces_of(rows_seen(&jobs[j], rows_of[of], first, left < each ? left : each), rows_per_piece);
            }
        }
    hgca_work *w = hgca_take(at, sizeof *w);
    hgca_attention *own = hgca_take(at, sizeof *own * (size_t)count);
    hgca_list *all = hgca_take(at, sizeof *all * (size_t)lists);
    hgca_part *parts = hgca_take(at, sizeof *parts * (size_t)pieces);
    if (w) {
        memset(w, 0, sizeof *w);
        memcpy(own, jobs, sizeof *own * (size_t)count);
        w->started.finish = join_all;
        w->jobs = own;
        w->job_count = count;
        w->lists = all;
        w->list_count = lists;
        w->parts = parts;
        w->started.batch.run = run_piece;
        w->started.batch.pieces = (int32_t)pieces;
        *result = w;
    }
    int32_t piece = 0, index = 0;
    int64_t most_floats = 0;
    for (int64_t j = 0, of = 0; j < count; j++) {
        const hgca_attention *job = &jobs[j];
        const hgca_kernel *kernel = w && strands == 0 ? hgca_kernel_for(job, 0) : NULL; /* it looks at the queries */
        for (int64_t i = 0; i < list_count(job); i++, of++) /* those of the same rows follow each other, which are in cache then */
            for (int32_t first = 0, each = tokens_of_list(job); first < job->tokens; first += each, index++) {
                const int32_t left = job->tokens - first, tokens = left < each ? left : each;
                const hgca_list mine = {.job = w ? &own[j] : job,
                                        .kernel = kernel,
                                        .first_token = first,
                                        .tokens = tokens,
                                        .head = (int32_t)i * heads_of_list(job),
                                        .heads = heads_of_list(job),
                                        .rows = rows_seen(job, rows_of[of], first, tokens),
                                        .rows_per_piece = rows_per_piece,
                                        .first_piece = piece};
                piece += lay_out_list(at, &mine, i, strands == 0, w ? &all[index] : NULL, w ? parts + piece : NULL, index);
                const int64_t floats = (floats_of(&mine) + 15) / 16 * 16; /* whole lines */
                if (floats > most_floats) most_floats = floats;
            }
    }
    if (strands == 0) return;
    const hgca_asked asked = {.taken = hgca_take(at, sizeof *asked.taken * (size_t)pieces),
                              .query = hgca_take(at, sizeof(float) * (size_t)(strands * most_floats)),
                              .query_floats = most_floats,
                              .strands = strands,
                              .pieces = (int32_t)pieces};
    if (w) w->asked = asked;
}

int hgca_make_work(const hgca_attention *jobs, int32_t count, int32_t strands, hgca_work **result) {
    if (count < 1 || jobs == NULL) return HGCA_BAD_ARGUMENT;
    int64_t lists = 0, rows = 0, tokens = 0;
    for (int32_t j = 0; j < count; j++) {
        tokens = jobs[j].tokens > tokens ? jobs[j].tokens : tokens;
        int status = hgca_check(&jobs[j]);
        if (status == HGCA_OK) status = check_joins(jobs, j);
        if (status) return status;
        lists += list_count(&jobs[j]);
    }
    int64_t *rows_of = malloc(sizeof *rows_of * (size_t)lists); /* asked once: a list of runs is walked for it */
    if (rows_of == NULL) return HGCA_NO_MEMORY;
    for (int64_t j = 0, at = 0; j < count; j++)
        for (int64_t l = 0; l < list_count(&jobs[j]); l++) rows += turns_of(&jobs[j]) * (rows_of[at++] = list_rows(&jobs[j], l));
    /* enough pieces that a thread the system takes away does not hold up the rest, none too small to pay for itself; more where they
     * are large, as lists end with a smaller one: nine of three heads kept two threads waiting for a twelfth of the time */
    const int64_t each = rows / hgca_threads();
    const int64_t at_once = tokens < HGCA_FEW_TOKENS ? tokens : HGCA_FEW_TOKENS, large = LARGE_ROWS / at_once;
    int64_t per_piece = each / LARGE_PIECES_PER_THREAD + 1;
    const int64_t fewest = strands ? ASKED_PIECES_PER_THREAD : PIECES_PER_THREAD;
    if (per_piece < large) per_piece = each / fewest < large ? each / fewest + 1 : large;
    per_piece = (per_piece + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    if (per_piece < LEAST_ROWS) per_piece = LEAST_ROWS;

    hgca_layout need = {NULL, 0};
    hgca_work *w = NULL;
    lay_out(&need, jobs, count, strands, rows_of, per_piece, &w);
    hgca_layout at = {hgca_take_memory(need.used), 0};
    if (at.base) lay_out(&at, jobs, count, strands, rows_of, per_piece, &w);
    free(rows_of);
    if (at.base == NULL) return HGCA_NO_MEMORY;
    for (int64_t l = 0; l < w->list_count; l++) /* lists without rows have no piece to finish them */
        if (w->lists[l].pieces == 0) merge_list(w, &w->lists[l]);
    w->started.batch.among_openmp = tokens > HGCA_FEW_TOKENS; /* a prompt: torch does much else of a layer */
    *result = w;
    return HGCA_OK;
}

int hgca_start(const hgca_attention *jobs, int32_t count, int64_t *ticket) {
    hgca_work *w;
    if (ticket == NULL) return HGCA_BAD_ARGUMENT;
    const int status = hgca_make_work(jobs, count, 0, &w);
    if (status == HGCA_OK) hgca_submit(&w->started, ticket);
    return status;
}
