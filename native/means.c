/* Means of rows, and how far they spread. */
#include <stddef.h>

#include "codes.h"

enum { MOST_WIDTH = HGCA_MOST_WIDTH, ALONE = 512 }; /* rows the caller adds up by itself */

typedef struct {
    hgca_batch batch; /* first: the pool hands this back */
    const hgca_means *job;
    int64_t groups; /* per head */
} averaging;

static void run_group(hgca_batch *batch, int32_t piece) {
    const averaging *a = (const averaging *)(const void *)batch;
    const hgca_means *job = a->job;
    const int64_t head = piece / a->groups, group = job->of.first / job->each + piece % a->groups;
    const int64_t first = group * job->each, end = job->of.first + job->of.count;
    const int64_t count = end - first < job->each ? end - first : job->each;
    const int32_t *order = job->order ? job->order + head * job->order_head_stride : NULL;
    float sum[MOST_WIDTH] = {0}, row[MOST_WIDTH];
    for (int64_t p = first; p < first + count; p++) {
        hgca_load_row(&job->of, head, order ? order[p] : p, row);
        for (int32_t d = 0; d < job->of.dim; d++) sum[d] += row[d];
    }
    for (int32_t d = 0; d < job->of.dim; d++) sum[d] /= (float)count;
    if (job->spread) {
        float apart[MOST_WIDTH] = {0};
        for (int64_t p = first; p < first + count; p++) {
            hgca_load_row(&job->of, head, order ? order[p] : p, row);
            for (int32_t d = 0; d < job->of.dim; d++) apart[d] += (row[d] - sum[d]) * (row[d] - sum[d]);
        }
        for (int32_t d = 0; d < job->of.dim; d++) sum[d] = apart[d] / (float)count;
    }
    char *to = (char *)job->mean + head * job->mean_head_stride + group * job->mean_row_stride;
    hgca_store_bf16(sum, job->of.dim, to);
}

int hgca_average(const hgca_means *job) {
    if (job == NULL || job->each < 1 || hgca_check_span(&job->of, job->each)) return HGCA_BAD_ARGUMENT;
    if (job->of.count > 0 && !job->mean) return HGCA_BAD_ARGUMENT;
    averaging a = {{0}, job, (job->of.count + job->each - 1) / job->each};
    a.batch.run = run_group;
    a.batch.pieces = (int32_t)(a.groups * job->of.heads);
    hgca_finish_batch(&a.batch, (int32_t)(ALONE / job->each));
    return HGCA_OK;
}
