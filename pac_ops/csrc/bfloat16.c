/* Convolution and its gradients once more, their products by the instructions for bfloat16 that some CPUs with AVX-512 have. */
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("arch=x86-64-v4,avx512bf16")
#define FOR_ONE_CPU
#define LANES 16
#define BFLOAT16
#define pac_convolution pac_convolution_bfloat16
#define pac_convolution_backward pac_convolution_backward_bfloat16
#include "convolution.c"
#include "convolution_backward.c"

/* Whether this CPU has them. */
int64_t pac_has_bfloat16(void) { return __builtin_cpu_supports("avx512bf16") != 0; }
#endif
