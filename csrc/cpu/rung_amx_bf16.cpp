#define URIAL_RUNG amx_bf16
#define URIAL_BF16_DOT
#define URIAL_AMX
#include "isa_avx512.h"
#include "rung.h"

URIAL_DEFINE_TABLES
