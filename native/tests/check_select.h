#ifndef HGCA_TESTS_CHECK_SELECT_H
#define HGCA_TESTS_CHECK_SELECT_H

#include <stdint.h>

/* Random choices of rows on the instruction set and threads in use: as many, from this seed on. Failures are printed and counted. */
int check_select(int count, uint64_t seed);

#endif
