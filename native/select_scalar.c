#define SELECT_ISA hgca_select_scalar
#include "select_template.h"
