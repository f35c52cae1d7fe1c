/* Keys in groups of 16 that are alike. */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "codes.h"
#include "select.h"

enum { MOST_ROWS = 65536, TURNS = 3, LANES = 16 };

/* One head at work. */
typedef struct {
    const float *row; /* [count][width], numbers behind dim are 0 */
    int64_t width;
    int32_t *order; /* indexes of rows */
    float *along;   /* [count], by index */
    float *line, *side[2]; /* [width] */
} bisection;

static hgca_gathered gathered(const bisection *b, const int32_t *index, int64_t count) {
    return (hgca_gathered){b->row, b->width, index, count};
}

static void mean_of(const bisection *b, const int32_t *index, int64_t count, float *to) {
    const hgca_gathered rows = gathered(b, index, count);
    hgca_selection_kernels()->middle(&rows, to);
}

static const float *farthest(const bisection *b, const int32_t *index, int64_t count, const float *from) {
    const hgca_gathered rows = gathered(b, index, count);
    int32_t best = index[0];
    float most = -1.0f;
    hgca_selection_kernels()->apart(&rows, from, b->along);
    for (int64_t i = 0; i < count; i++)
        if (b->along[index[i]] > most) most = b->along[index[i]], best = index[i];
    return b->row + best * b->width;
}

/* The `first` smallest by `along` come first: quickselect, which goes wrong for no order of NaN. */
static void partition(int32_t *index, int64_t count, int64_t first, const float *along) {
    int64_t low = 0, high = count - 1;
    while (low < high) {
        const float pivot = along[index[low + (high - low) / 2]];
        int64_t i = low, j = high;
        while (i <= j) {
            while (i < high && along[index[i]] < pivot) i++;
            while (j > low && along[index[j]] > pivot) j--;
            if (i > j) break;
            int32_t keep = index[i];
            index[i++] = index[j];
            index[j--] = keep;
        }
        if (first <= j) high = j;
        else if (first >= i) low = i;
        else return;
    }
}

/* Halves of whole groups, along the line between two rows far apart, then between the halves' means. */
static int64_t halve(bisection *b, int32_t *index, int64_t count) {
    const int64_t first = count / LANES / 2 * LANES;
    const hgca_gathered rows = gathered(b, index, count);
    mean_of(b, index, count, b->side[0]);
    const float *one = farthest(b, index, count, b->side[0]), *other = farthest(b, index, count, one);
    for (int turn = 0; turn < TURNS; turn++) {
        for (int64_t d = 0; d < b->width; d++) b->line[d] = one[d] - other[d];
        hgca_selection_kernels()->along(&rows, b->line, b->along);
        partition(index, count, first, b->along);
        if (turn + 1 == TURNS) break;
        mean_of(b, index, first, b->side[0]);
        mean_of(b, index + first, count - first, b->side[1]);
        one = b->side[1];
        other = b->side[0];
    }
    return first;
}

static void bisect(bisection *b, int32_t *index, int64_t count) {
    while (count > LANES) {
        int64_t first = halve(b, index, count);
        bisect(b, index, first);
        index += first;
        count -= first;
    }
}

static int descending(const void *a, const void *b) {
    const float x = ((const float *)a)[0], y = ((const float *)b)[0];
    return (x < y) - (x > y);
}

/* Rows farthest from the mean of their group go behind the others; both parts in the order they had. */
static void set_apart(bisection *b, int64_t count, int64_t apart, float *far) {
    for (int64_t g = 0; g < count; g += LANES) {
        const hgca_gathered rows = gathered(b, b->order + g, LANES);
        mean_of(b, b->order + g, LANES, b->side[0]);
        hgca_selection_kernels()->apart(&rows, b->side[0], b->along);
        for (int i = 0; i < LANES; i++) far[g + i] = b->along[b->order[g + i]];
    }
    for (int64_t i = 0; i < count; i++) /* rows that are no numbers are farthest, and sort like the others */
        if (far[i] != far[i]) far[i] = b->along[b->order[i]] = INFINITY;
    qsort(far, (size_t)count, sizeof *far, descending);
    const float edge = far[apart - 1];
    int64_t ties = 0;
    for (int64_t i = 0; i < apart; i++) ties += far[i] == edge;
    int32_t *behind = (int32_t *)(void *)far; /* sorted, it has done its work */
    int64_t kept = 0, gone = 0;
    for (int64_t i = 0; i < count; i++) {
        const float mine = b->along[b->order[i]];
        int out = gone < apart && (mine > edge || (mine == edge && ties-- > 0));
        if (out) behind[gone++] = b->order[i];
        else b->order[kept++] = b->order[i];
    }
    memcpy(b->order + kept, behind, sizeof *behind * (size_t)gone);
}

typedef struct {
    hgca_batch batch; /* first: the pool hands this back */
    const hgca_clustering *job;
    _Atomic int failed;
} clustering;

static void run_head(hgca_batch *batch, int32_t head) {
    clustering *c = (clustering *)(void *)batch;
    const hgca_clustering *job = c->job;
    const int64_t width = (job->of.dim + LANES - 1) / LANES * LANES, count = job->of.count;
    float *memory = aligned_alloc(64, (size_t)(4 * (count * width + 2 * count + 3 * width) + 63) / 64 * 64);
    if (memory == NULL) {
        atomic_store(&c->failed, 1);
        return;
    }
    float *line = memory + count * width;
    bisection b = {memory, width, job->order + head * job->order_head_stride, line + 3 * width, line, {line + width, line + 2 * width}};
    for (int64_t i = 0; i < count; i++) {
        float *to = memory + i * width;
        hgca_load_row(&job->of, head, job->of.first + i, to);
        for (int64_t d = job->of.dim; d < width; d++) to[d] = 0.0f;
        b.order[i] = (int32_t)i;
    }
    bisect(&b, b.order, count);
    if (job->apart > 0) {
        const int64_t apart = job->apart * LANES;
        set_apart(&b, count, apart, b.along + count);
        bisect(&b, b.order, count - apart);
        bisect(&b, b.order + count - apart, apart);
    }
    for (int64_t i = 0; i < count; i++) b.order[i] += (int32_t)job->of.first;
    free(memory);
}

int hgca_cluster(const hgca_clustering *job) {
    if (job == NULL || hgca_check_span(&job->of, 1) || job->of.count < 1 || job->of.count > MOST_ROWS ||
        job->of.count % LANES || job->of.first > INT32_MAX - job->of.count || job->order == NULL)
        return HGCA_BAD_ARGUMENT;
    if (job->apart < 0 || job->apart > job->of.count / LANES / 2) return HGCA_BAD_ARGUMENT;
    clustering c = {{0}, job, 0};
    c.batch.run = run_head;
    c.batch.pieces = job->of.heads;
    hgca_finish_batch(&c.batch, 1); /* a thread beside the pool's asks a head at a time, and holds up no attention */
    return atomic_load(&c.failed) ? HGCA_NO_MEMORY : HGCA_OK;
}
