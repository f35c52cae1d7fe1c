#define SELECT_ISA hgca_select_avx512vnni
#include "select_template.h"
