#ifndef HGCA_CHECK_EXPERTS_H
#define HGCA_CHECK_EXPERTS_H

/* Experts of a few tokens by the instruction set and threads in use. The number of failures. */
int check_experts(void);

#endif
