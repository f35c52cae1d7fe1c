#ifndef HGCA_CHECK_LINEAR_H
#define HGCA_CHECK_LINEAR_H

/* Linear layers by the instruction set and threads in use. The number of failures. */
int check_linear(void);

#endif
