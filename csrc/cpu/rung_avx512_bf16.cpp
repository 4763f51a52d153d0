#define URIAL_RUNG avx512_bf16
#define URIAL_BF16_DOT
#include "isa_avx512.h"
#include "rung.h"

URIAL_DEFINE_TABLES
