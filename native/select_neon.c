#define SELECT_ISA hgca_select_neon
#include "select_template.h"
