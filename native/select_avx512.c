#define SELECT_ISA hgca_select_avx512
#include "select_template.h"
