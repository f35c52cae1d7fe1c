#define SELECT_ISA hgca_select_avx2
#include "select_template.h"
