#ifndef HGCA_CHECK_CONVERT_H
#define HGCA_CHECK_CONVERT_H

/* The number of failures. */
int check_convert(void);

#endif
