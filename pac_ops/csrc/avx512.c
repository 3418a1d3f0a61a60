/* Convolution, pooling, their gradients, and distances once more, in vectors of 16 floats, for CPUs with AVX-512. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("arch=x86-64-v4")
#define FOR_ONE_CPU
#define LANES 16
#define pac_convolution pac_convolution_avx512
#define pac_convolution_backward pac_convolution_backward_avx512
#define pac_distance pac_distance_avx512
#define pac_gaussian pac_gaussian_avx512
#define pac_pooling pac_pooling_avx512
#define pac_pooling_backward pac_pooling_backward_avx512
#define pac_pooling_last pac_pooling_last_avx512
#include "convolution.c"
#include "convolution_backward.c"
#include "distance.c"
#include "pooling.c"
#include "pooling_last.c"
#endif
