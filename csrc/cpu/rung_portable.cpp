#define URIAL_RUNG portable
#include "isa_portable.h"
#include "rung.h"

URIAL_DEFINE_TABLES
