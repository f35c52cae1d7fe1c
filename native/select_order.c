/* In which order the pieces of attention over chosen rows are taken (select.c). Each waits for some that come before it alone. */
#include "selecting.h"

/* Units a thread goes through in all, from which on what one leaves behind is no longer in its cache when the next stage comes. */
enum { FEW_UNITS = 16 };

static int32_t *add_stage(const hgca_selecting *w, int stage, const hgca_head *h, int32_t *to) {
    for (int32_t i = 0; i < h->units; i++) *to++ = stage * w->unit_count + h->first_unit + i;
    return to;
}

/* Stage by stage. Of the rows that are read a head's first units hold more than its last ones, which are looked through without a gate:
 * these last, so that threads end at about the same time. */
static void order_by_stage(const hgca_selecting *w, int32_t heads) {
    int32_t *to = w->order;
    for (int stage = w->first_stage; stage < HGCA_STAGE_ROWS; stage++)
        for (int32_t i = 0; i < heads; i++) to = add_stage(w, stage, &w->heads[i], to);
    for (int32_t index = 0, count = 0; count < w->unit_count; index++)
        for (int32_t i = 0; i < heads; i++)
            if (index < w->heads[i].units) *to++ = HGCA_STAGE_ROWS * w->unit_count + w->heads[i].first_unit + index, count++;
}

/* Head by head. While the last units of one are at a stage, others are at the stage before it, of the next head; rows are read as soon as
 * they are known, as weights and what was looked up for them are in cache. */
static void order_by_head(const hgca_selecting *w, int32_t heads) {
    static const int32_t late[HGCA_STAGES] = {0, 1, 2, 3, 3};
    int32_t *to = w->order;
    for (int32_t turn = 0; turn < heads + late[HGCA_STAGE_ROWS]; turn++)
        for (int stage = w->first_stage; stage < HGCA_STAGES; stage++) {
            const int32_t i = turn - late[stage];
            if (i >= 0 && i < heads) to = add_stage(w, stage, &w->heads[i], to);
        }
}

void hgca_order_pieces(const hgca_selecting *w, int32_t heads) {
    if (w->unit_count > FEW_UNITS * hgca_threads()) order_by_head(w, heads);
    else order_by_stage(w, heads);
}
