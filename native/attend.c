/* Attention jobs: checked, cut into pieces, worked on by the pool, and the pieces merged by log-sum-exp. */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "dispatch.h"
#include "hgca.h"
#include "pool.h"

enum { LEAST_ROWS = 256, TILE_ROWS = 64, PIECES_PER_THREAD = 4 };
enum { MOST = 1 << 24 }; /* heads, widths: what keeps the sizes below in 64 bits */

/* One list of one job: its query heads, its rows, the pieces they were cut into. */
typedef struct {
    const hgca_attention *job;
    const float *query; /* scaled, padded: of the list's first head */
    int32_t head;       /* the list's first query head */
    int32_t heads;
    int32_t first_piece;
    int32_t pieces;
    const int32_t *row;
    int64_t rows;
    int64_t rows_per_piece;
    _Atomic int32_t left; /* pieces not done: who brings it to zero merges */
} list;

typedef struct {
    int32_t list;
    float *out; /* [heads][padded value_dim] */
    float *max;
    float *sum;
} part;

typedef struct work {
    hgca_batch batch; /* first: the pool hands this back */
    const hgca_isa_kernels *kernels;
    hgca_attention *jobs;
    list *lists;
    int64_t list_count;
    part *parts;
    int64_t ticket;
    int32_t generation;
    struct work *next;
} work;

static work *outstanding; /* both with the pool's lock, which survives a fork */
static int64_t last_ticket;

static int64_t list_count(const hgca_attention *job) { return job->lists ? job->lists : job->kv_heads; }

static int64_t list_rows(const hgca_attention *job, int64_t l) {
    return job->lists ? job->row_start[l + 1] - job->row_start[l] : job->rows;
}

static int check(const hgca_attention *job) {
    if (job->rows < 0 || job->kv_heads < 1 || job->heads < 1 || job->heads % job->kv_heads || job->key_dim < 1 ||
        job->value_dim < 1 || job->dtype < HGCA_F32 || job->dtype > HGCA_F16 || job->lists < 0)
        return HGCA_BAD_ARGUMENT;
    if (!job->query || !job->out || !job->lse || (job->rows > 0 && (!job->key || !job->value)))
        return HGCA_BAD_ARGUMENT;
    if (job->heads > MOST || job->key_dim > MOST || job->value_dim > MOST) return HGCA_BAD_ARGUMENT;
    if (!(job->softcap >= 0.0f && job->softcap < INFINITY)) return HGCA_BAD_ARGUMENT;
    if (job->lists == 0) return HGCA_OK;
    if (job->lists % job->kv_heads || job->heads % job->lists || !job->row_start) return HGCA_BAD_ARGUMENT;
    if (job->row_start[0] < 0) return HGCA_BAD_ARGUMENT;
    for (int32_t l = 0; l < job->lists; l++)
        if (job->row_start[l + 1] < job->row_start[l]) return HGCA_BAD_ARGUMENT;
    int64_t begin = job->row_start[0], end = job->row_start[job->lists];
    if (begin < end && !job->row) return HGCA_BAD_ARGUMENT;
    int bad = 0;
    for (int64_t i = begin; i < end; i++) bad |= job->row[i] < 0 || job->row[i] >= job->rows;
    return bad ? HGCA_BAD_ARGUMENT : HGCA_OK;
}

static void merge_list(work *w, list *l) {
    const hgca_attention *job = l->job;
    int64_t width = hgca_padded(job->value_dim);
    for (int32_t h = 0; h < l->heads; h++) {
        float *out = job->out + (int64_t)(l->head + h) * job->value_dim;
        float top = -INFINITY, sum = 0.0f;
        const part *parts = w->parts + l->first_piece;
        for (int32_t i = 0; i < l->pieces; i++)
            if (parts[i].max[h] > top) top = parts[i].max[h];
        memset(out, 0, sizeof(float) * (size_t)job->value_dim);
        for (int32_t i = 0; i < l->pieces; i++) {
            float share = parts[i].max[h] == top ? 1.0f : expf(parts[i].max[h] - top);
            const float *from = parts[i].out + h * width;
            if (parts[i].sum[h] == 0.0f) continue; /* saw nothing */
            sum += share * parts[i].sum[h];
            for (int32_t d = 0; d < job->value_dim; d++) out[d] += share * from[d];
        }
        if (sum != 0.0f)
            for (int32_t d = 0; d < job->value_dim; d++) out[d] /= sum;
        job->lse[l->head + h] = sum == 0.0f ? -INFINITY : top + logf(sum);
    }
}

static void run_piece(hgca_batch *batch, int32_t index) {
    work *w = (work *)batch;
    part *mine = &w->parts[index];
    list *l = &w->lists[mine->list];
    const hgca_attention *job = l->job;
    int64_t kv_head = l->head / (job->heads / job->kv_heads);
    int64_t from = (index - l->first_piece) * l->rows_per_piece;
    int64_t count = l->rows - from < l->rows_per_piece ? l->rows - from : l->rows_per_piece;
    hgca_piece piece = {
        .key = (const char *)job->key + kv_head * job->key_head_stride,
        .value = (const char *)job->value + kv_head * job->value_head_stride,
        .key_row_stride = job->key_row_stride,
        .value_row_stride = job->value_row_stride,
        .row = l->row ? l->row + from : NULL,
        .first = from,
        .count = count,
        .key_dim = job->key_dim,
        .value_dim = job->value_dim,
        .heads = l->heads,
        .softcap = job->softcap,
        .query = l->query,
        .out = mine->out,
        .max = mine->max,
        .sum = mine->sum,
    };
    w->kernels->piece[job->dtype](&piece);
    if (atomic_fetch_sub(&l->left, 1) == 1) merge_list(w, l);
}

/* Memory is laid out in two passes over the same code: without a base it only counts. */
typedef struct {
    char *base;
    size_t used;
} layout;

static void *take(layout *at, size_t bytes) {
    void *here = at->base ? at->base + at->used : NULL;
    at->used += (bytes + 63) & ~(size_t)63;
    return here;
}

static int32_t pieces_of(int64_t rows, int64_t rows_per_piece) {
    return (int32_t)((rows + rows_per_piece - 1) / rows_per_piece);
}

static void lay_out(layout *at, const hgca_attention *jobs, int32_t count, int64_t rows_per_piece, work **result) {
    int64_t lists = 0, pieces = 0;
    for (int32_t j = 0; j < count; j++) {
        lists += list_count(&jobs[j]);
        for (int64_t l = 0; l < list_count(&jobs[j]); l++) pieces += pieces_of(list_rows(&jobs[j], l), rows_per_piece);
    }
    work *w = take(at, sizeof *w);
    hgca_attention *own = take(at, sizeof *own * (size_t)count);
    list *all = take(at, sizeof *all * (size_t)lists);
    part *parts = take(at, sizeof *parts * (size_t)pieces);
    if (w) {
        memset(w, 0, sizeof *w);
        memcpy(own, jobs, sizeof *own * (size_t)count);
        w->jobs = own;
        w->lists = all;
        w->list_count = lists;
        w->parts = parts;
        w->batch.run = run_piece;
        w->batch.pieces = (int32_t)pieces;
        *result = w;
    }
    int32_t piece = 0, list_index = 0;
    for (int32_t j = 0; j < count; j++) {
        const hgca_attention *job = &jobs[j];
        int64_t key_width = hgca_padded(job->key_dim), value_width = hgca_padded(job->value_dim);
        float *query = take(at, sizeof(float) * (size_t)(job->heads * key_width));
        if (query)
            for (int32_t h = 0; h < job->heads; h++)
                for (int64_t d = 0; d < key_width; d++)
                    query[h * key_width + d] =
                        d < job->key_dim ? job->query[(int64_t)h * job->key_dim + d] * job->scale : 0.0f;
        int32_t heads = (int32_t)(job->heads / list_count(job));
        for (int64_t i = 0; i < list_count(job); i++, list_index++) {
            int32_t mine = pieces_of(list_rows(job, i), rows_per_piece);
            if (w) {
                list *l = &all[list_index];
                l->job = &own[j];
                l->head = (int32_t)i * heads;
                l->heads = heads;
                l->query = query + l->head * key_width;
                l->rows = list_rows(job, i);
                l->row = job->lists ? job->row + job->row_start[i] : NULL;
                l->first_piece = piece;
                l->pieces = mine;
                l->rows_per_piece = rows_per_piece;
                atomic_init(&l->left, mine);
            }
            for (int32_t k = 0; k < mine; k++, piece++) {
                float *out = take(at, sizeof(float) * (size_t)(heads * value_width));
                float *rest = take(at, sizeof(float) * 2 * (size_t)heads);
                if (w) parts[piece] = (part){list_index, out, rest, rest + heads};
            }
        }
    }
}

int hgca_start(const hgca_attention *jobs, int32_t count, int64_t *ticket) {
    if (count < 1 || jobs == NULL || ticket == NULL) return HGCA_BAD_ARGUMENT;
    int64_t rows = 0;
    for (int32_t j = 0; j < count; j++) {
        int status = check(&jobs[j]);
        if (status) return status;
        for (int64_t l = 0; l < list_count(&jobs[j]); l++) rows += list_rows(&jobs[j], l);
    }
    /* enough pieces that a thread the system takes away does not hold up the rest, none too small to pay for itself */
    int64_t per_piece = rows / ((int64_t)hgca_threads() * PIECES_PER_THREAD) + 1;
    per_piece = (per_piece + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    if (per_piece < LEAST_ROWS) per_piece = LEAST_ROWS;

    layout need = {NULL, 0};
    work *w = NULL;
    lay_out(&need, jobs, count, per_piece, &w);
    layout at = {aligned_alloc(64, need.used), 0};
    if (at.base == NULL) return HGCA_NO_MEMORY;
    lay_out(&at, jobs, count, per_piece, &w);
    w->kernels = hgca_kernels();
    for (int64_t l = 0; l < w->list_count; l++) /* lists without rows have no piece to finish them */
        if (w->lists[l].pieces == 0) merge_list(w, &w->lists[l]);
    hgca_pool_lock();
    w->ticket = *ticket = ++last_ticket;
    w->generation = hgca_pool_generation();
    w->next = outstanding;
    outstanding = w;
    hgca_pool_unlock();
    hgca_pool_submit(&w->batch);
    return HGCA_OK;
}

int hgca_wait(int64_t ticket) {
    hgca_pool_lock();
    work **at = &outstanding;
    while (*at && (*at)->ticket != ticket) at = &(*at)->next;
    work *w = *at;
    if (w) *at = w->next;
    hgca_pool_unlock();
    if (w == NULL) return HGCA_BAD_ARGUMENT;
    int ours = w->generation == hgca_pool_generation();
    if (ours) hgca_pool_wait(&w->batch);
    free(w);
    return ours ? HGCA_OK : HGCA_FORKED;
}
