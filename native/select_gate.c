/* Which groups are looked at, and which of them are taken: the first stages of attention over chosen rows (select.c). Blocks of 128
 * positions whose mean keys say that they may matter are opened, and the mean keys of an open block's groups are scored. */
#include <string.h>

#include "codes.h"
#include "selecting.h"

static const float LOG2E = 1.44269504088896341f;

/* Of 16 and of 128 normal scores that spread far. */
static const hgca_bend OF_GROUP = {4.0f, 2.35f, 2.7f}, OF_BLOCK = {9.7f, 3.115f, 4.852f};

/* Scores by mean keys, and with the spread of the keys about them. */
static void score_means(const hgca_unit *u, const hgca_scored *to, hgca_scan scan, const char *spread_codes, hgca_bend bend) {
    const hgca_head *h = u->head;
    scan.dim = h->job->rows.key_dim;
    scan.queries = h->queries;
    scan.query = h->code_query;
    scan.softcap = h->job->rows.softcap;
    scan.score = to->mean.score, scan.max = to->mean.max, scan.sum = to->mean.sum;
    scan.raw = spread_codes ? to->raw : NULL;
    hgca_selection_kernels()->scan(&scan);
    if (!spread_codes) return;
    hgca_reaching reaching = {
        .raw = to->raw,
        .bend = bend,
        .unit = scan.softcap > 0.0f ? 1.0f : LOG2E,
        .queries = h->queries,
        .count = scan.count * HGCA_LANES,
        .score = to->mean.score,
        .max = to->mean.max,
        .sum = to->mean.sum,
    };
    hgca_selection_kernels()->reach(&reaching);
    scan.codes = spread_codes;
    scan.query = h->spread_query;
    scan.softcap = 0.0f;
    scan.raw = to->spread;
    hgca_selection_kernels()->scan(&scan);
    reaching.variance = to->spread;
    reaching.score = to->reach.score, reaching.max = to->reach.max, reaching.sum = to->reach.sum;
    hgca_selection_kernels()->reach(&reaching);
}

void hgca_score_blocks(hgca_unit *u) {
    const hgca_head *h = u->head;
    const hgca_selection *job = h->job;
    if (u->block.count == 0) return;
    const int64_t dim = job->rows.key_dim, lanes = hgca_score_room(u->block.count) / HGCA_LANES;
    const hgca_scan scan = {
        .codes = (const char *)job->block_codes + h->head * job->block_codes_head_stride,
        .first = u->first / HGCA_BLOCK,
        .count = lanes,
        .end = job->clustered / HGCA_BLOCK,
    };
    const char *spread_codes = (const char *)job->block_spread_codes + h->head * job->block_spread_codes_head_stride;
    score_means(u, &u->block, scan, spread_codes, OF_BLOCK);
    u->stats.bytes += 2 * (lanes * hgca_lanes_bytes(dim) + hgca_up(u->block.count, HGCA_BLOCK) / HGCA_BLOCK * hgca_scales_bytes(dim));
}

/* Bit i: heavy enough, of 16 from number i on; of those in the edge's last bin only so many as there is room for. */
static uint32_t heavy_bits(hgca_unit *u, const hgca_scored *of, int64_t i, const hgca_edge *edge, uint32_t among) {
    uint32_t (*lanes)(const float *, float) = hgca_selection_kernels()->lanes;
    if (edge->all) return among;
    const uint32_t heavy = lanes(of->reach.weight + i, edge->least) & among;
    uint32_t sure = heavy & lanes(of->reach.weight + i, edge->above);
    for (uint32_t some = heavy & ~sure; some && u->room > 0; some &= some - 1, u->room--) sure |= some & -some;
    return sure;
}

static const uint8_t *apart_of(const hgca_unit *u, int64_t group) {
    const hgca_selection *job = u->head->job;
    return (const uint8_t *)job->apart + u->head->head * job->apart_head_stride + group;
}

/* A bit for each of `count` groups, at most 16, that stand apart. */
static uint32_t apart_groups(const hgca_unit *u, int64_t first, int64_t count) {
    uint32_t bits = 0;
    uint64_t both[2] = {0};
    if (!u->head->job->apart) return 0;
    memcpy(both, apart_of(u, first), (size_t)count);
    if (!(both[0] | both[1])) return 0;
    for (int64_t r = 0; r < count; r++) bits |= (uint32_t)(apart_of(u, first)[r] != 0) << r;
    return bits;
}

/* A bit for each of 16 blocks that stand apart. */
static uint32_t apart_blocks(const hgca_unit *u, int64_t i, int64_t count) {
    uint32_t bits = 0;
    for (int64_t r = 0; u->head->job->apart && r < count; r++)
        bits |= (uint32_t)(*apart_of(u, u->first + (i + r) * HGCA_GROUPS) != 0) << r;
    return bits;
}

/* Two blocks are 16 groups, which are scored together: if one is open, both are. One that stands apart is taken in any case. */
static void open_blocks(hgca_unit *u) {
    const hgca_head *h = u->head;
    const int64_t room = hgca_score_room(u->block.count);
    for (int64_t i = 0; i < room; i += HGCA_LANES) {
        const int64_t count = hgca_smaller(u->block.count - i, HGCA_LANES);
        const uint32_t every = (1u << count) - 1, apart = apart_blocks(u, i, count);
        uint32_t open = heavy_bits(u, &u->block, i, &h->open, every & ~apart);
        open = (open | open >> 1) & 0x5555;
        u->closed[i / HGCA_LANES] = (uint16_t)(every & ~(open * 3) & ~apart);
        for (; open; open &= open - 1) u->open[u->open_count++] = (int32_t)((u->first / HGCA_GROUPS + i + __builtin_ctz(open)) / 2);
    }
    for (int32_t q = 0; q < h->queries; q++)
        u->closed_sum[q] = hgca_selection_kernels()->hold(u->block.mean.score + q * room, u->closed, room);
    u->group.count = u->open_count * HGCA_LANES;
}

void hgca_score_groups(hgca_unit *u) {
    const hgca_head *h = u->head;
    const hgca_selection *job = h->job;
    if (u->block.count) open_blocks(u);
    else
        for (int64_t i = 0; i < u->group.count; i += HGCA_LANES) u->open[u->open_count++] = (int32_t)((u->first + i) / HGCA_LANES);
    if (u->group.count == 0) return;
    const int64_t dim = job->rows.key_dim;
    const char *spread_codes = NULL;
    if (!job->pages && job->spread_codes) spread_codes = (const char *)job->spread_codes + h->head * job->spread_codes_head_stride;
    const hgca_scan scan = {
        .codes = job->pages ? (const char *)job->pages + h->head * job->pages_head_stride
                            : (const char *)job->group_codes + h->head * job->group_codes_head_stride,
        .sides = !job->pages ? 0 : job->page_kind == HGCA_PAGE_BOX ? 2 : 1,
        .groups = u->open,
        .count = u->open_count,
        .end = hgca_scored_groups(job),
    };
    score_means(u, &u->group, scan, spread_codes, OF_GROUP);
    int64_t scales = 0;
    for (int64_t i = 0; i < u->open_count; i++) scales += i == 0 || u->open[i] / HGCA_GROUPS != u->open[i - 1] / HGCA_GROUPS;
    u->stats.groups = u->group.count;
    u->stats.bytes += job->pages ? u->open_count * hgca_page_bytes((int32_t)dim, job->page_kind)
                                 : (spread_codes ? 2 : 1) * (u->open_count * hgca_lanes_bytes(dim) + scales * hgca_scales_bytes(dim));
}

/* Those that stand apart always are, beside gate_most. */
void hgca_take_groups(hgca_unit *u) {
    const hgca_head *h = u->head;
    const int64_t gated = h->job->gate != HGCA_GATE_NONE ? u->clustered : 0, scored = hgca_score_room(u->group.count);
    for (int64_t i = 0, next = 0; i < gated; i += HGCA_LANES) {
        const int64_t first = u->first + i, count = hgca_smaller(gated - i, HGCA_LANES);
        const uint32_t every = (1u << count) - 1;
        uint32_t bits = apart_groups(u, first, count);
        if (next < u->open_count && u->open[next] == first / HGCA_LANES) {
            bits |= heavy_bits(u, &u->group, next * HGCA_LANES, &h->gate, every & ~bits);
            u->passed[next++] = (uint16_t)(every & ~bits);
        }
        for (; bits; bits &= bits - 1) u->taken[u->taken_count++] = (int32_t)(first + __builtin_ctz(bits));
    }
    for (int64_t i = gated; i < u->groups; i++) u->taken[u->taken_count++] = (int32_t)(u->first + i);
    for (int32_t q = 0; q < h->queries; q++)
        u->left_sum[q] = hgca_selection_kernels()->hold(u->group.mean.score + q * scored, u->passed, scored);
}
