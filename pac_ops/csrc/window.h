/* What the fast CPU kernels share. They are float32: backends/native calls them, backends/reference.py says what they
 * compute.
 *
 * Plain C with GCC/Clang vector types; the loops that matter are compiled for several instruction sets and picked
 * when the library is loaded. Threads are OpenMP's, resolved from the runtime that PyTorch has loaded, so that both
 * share one pool.
 */
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if LANES == 16
#include <immintrin.h>
#endif

#if defined(FOR_ONE_CPU)
#define FOR_EVERY_CPU
#elif defined(__x86_64__) && defined(__GLIBC__)
#define FOR_EVERY_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_CPU
#endif
#define INLINE static inline __attribute__((always_inline))

#ifndef LANES
#define LANES 8 /* floats in a vector where a file does not say otherwise */
#endif
typedef float v8 __attribute__((vector_size(32), aligned(4)));
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t whole_vec __attribute__((vector_size(4 * LANES)));

typedef struct {
    int64_t batch, channels, height, width;
    int64_t out_channels, out_height, out_width, groups;
    int64_t kernel[2], stride[2], padding[2], dilation[2];
    /* Elements from one to the next of: */
    int64_t kernel_step[5]; /* K's images, taps down and across, rows, columns */
    int64_t weight_step[5]; /* the weight's groups, output channels and input channels of a group, taps */
    int64_t out_step[4];    /* the output's images, channels, rows, columns */
    int64_t grad_kernel_step[5], grad_weight_step[5]; /* as those of K and the weight */
} Window;

INLINE v8 load(const float *p) { return *(const v8 *)p; }
INLINE void store(float *p, v8 x) { *(v8 *)p = x; }
INLINE vec get(const float *p) { return *(const vec *)p; }
INLINE void put(float *p, vec x) { *(vec *)p = x; }
INLINE vec all_of(float x) { return x - (vec){0}; }
/* The first `count` of a vector. */
INLINE vec get_some(const float *p, int64_t count) {
#if LANES == 16
    return (vec)_mm512_maskz_loadu_ps((__mmask16)((1 << count) - 1), p);
#else
    vec x = {0};
    for (int64_t i = 0; i < count; i++) x[i] = p[i];
    return x;
#endif
}
INLINE void put_some(float *p, vec x, int64_t count) {
#if LANES == 16
    _mm512_mask_storeu_ps(p, (__mmask16)((1 << count) - 1), (__m512)x);
#else
    for (int64_t i = 0; i < count; i++) p[i] = x[i];
#endif
}
/* Every second of two vectors, from the first or the second on. */
INLINE vec even(vec a, vec b) {
#if LANES == 16
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
#else
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
#endif
}
INLINE vec odd(vec a, vec b) {
#if LANES == 16
    return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#else
    return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#endif
}
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }
INLINE int64_t whole_vectors(int64_t n) { return parts_of(n, LANES) * LANES; }

/* A vector of which `count` elements are there, which may be more than it has, or none. */
INLINE vec get_up_to(const float *p, int64_t count) {
    return count >= LANES ? get(p) : count > 0 ? get_some(p, count) : (vec){0};
}

INLINE void put_up_to(float *p, vec x, int64_t count) {
    if (count >= LANES)
        put(p, x);
    else if (count > 0)
        put_some(p, x, count);
}

static float *buffer(int64_t elements) { return aligned_alloc(64, ((size_t)most(elements, 16) * 4 + 63) / 64 * 64); }

/* A thread's buffer, of which the first `zeros` elements are 0; where memory runs out, `failed` says so to all. */
INLINE float *thread_buffer(int64_t elements, int64_t zeros, int *failed) {
    float *found = buffer(elements);
    if (found)
        memset(found, 0, zeros * sizeof(float));
    else {
#pragma omp atomic write
        *failed = 1;
    }
    return found;
}

/* Where the outputs x of a row see a column x * stride + shift inside a row of `width`: first <= x < last. */
INLINE void seen_range(int64_t shift, int64_t stride, int64_t width, int64_t outputs, int64_t *first, int64_t *last) {
    *first = shift >= 0 ? 0 : (-shift + stride - 1) / stride;
    *last = width - shift <= 0 ? 0 : least(outputs, (width - shift + stride - 1) / stride);
}
