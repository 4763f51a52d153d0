#define URIAL_RUNG avx512
#include "isa_avx512.h"
#include "rung.h"

URIAL_DEFINE_TABLES
