/* Whole decoder layers against double precision. */
#ifndef HGCA_TESTS_CHECK_LAYER_H
#define HGCA_TESTS_CHECK_LAYER_H

/* Returns how many of them are wrong. */
int check_layer(int count, uint64_t seed);

#endif
