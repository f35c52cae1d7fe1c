#ifndef HGCA_TESTS_CHECK_SERVE_H
#define HGCA_TESTS_CHECK_SERVE_H

#include <stdint.h>

/* Steps that a thread in a device's place asks for, as many, from this seed on. Failures are printed and counted. */
int check_serve(int count, uint64_t seed);

#endif
