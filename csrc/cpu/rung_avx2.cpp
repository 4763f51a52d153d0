#define URIAL_RUNG avx2
#include "isa_avx2.h"
#include "rung.h"

URIAL_DEFINE_TABLES
