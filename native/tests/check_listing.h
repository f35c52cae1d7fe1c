#ifndef HGCA_TESTS_CHECK_LISTING_H
#define HGCA_TESTS_CHECK_LISTING_H

#include <stdint.h>

/* Which rows are read, and what their weights are counted into, beside plain loops: as many random ones, from this seed on, on the
 * instruction set in use. Failures are printed and counted. */
int check_listing(int count, uint64_t seed);

#endif
