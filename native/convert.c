/* Rows become rows of a store: converted or quantised (hgca_copy_rows). */
#include "hgca.h"

int hgca_copy_rows(const hgca_copy *copies, int32_t count) {
    (void)copies;
    (void)count;
    return HGCA_BAD_ARGUMENT;
}
