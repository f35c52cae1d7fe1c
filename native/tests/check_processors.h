#ifndef HGCA_CHECK_PROCESSORS_H
#define HGCA_CHECK_PROCESSORS_H

/* Returns the number of failures, which it has printed. */
int check_processors(void);

#endif
