/* Convolution as an implicit matrix product: panels of output pixels, where they find their taps, and the tiles that
 * multiply them. */
#pragma once

#include "window.h"

typedef int32_t mask __attribute__((vector_size(4 * LANES), aligned(4)));

/* What a tile is multiplied of: float32, or in bfloat16 pairs of neighbours in depth, the first in the lower half. */
#ifdef BFLOAT16
typedef uint32_t element;
#define DEPTHS 2
#else
typedef float element;
#define DEPTHS 1
#endif

enum {
    /* Of a tile of the matrix product: output channels. 6 x 16 fills the registers of AVX2, 14 x 32 those of AVX-512. */
    ROWS = LANES == 16 ? 14 : 6,
    PIXELS = 2 * LANES, /* of a tile, side by side: a panel */
    DEPTH = 384,        /* products summed in a tile at a time, backward: a panel then stays in the first-level cache */
    BAND = 256,         /* output pixels whose panels are packed at a time, backward: 384 KiB, near the core */
    STEPS = 1152,       /* as DEPTH, forward: sums of up to 128 input channels of 3 x 3 taps stay in registers */
    NEAR = STEPS * 4 * PIXELS, /* as BAND: 288 KiB of taps or lines, or 576 where the second-level cache is larger */
    SLAB = 12, /* tiles of rows that share a panel before the next one: their weights stay in the second level */
};

/* x with a zero behind each element: the lower half of that, and the upper. */
INLINE vec spread_lower(vec x) {
    vec zero = {0};
#if LANES == 16
    return __builtin_shufflevector(x, zero, 0, 16, 1, 16, 2, 16, 3, 16, 4, 16, 5, 16, 6, 16, 7, 16);
#else
    return __builtin_shufflevector(x, zero, 0, 8, 1, 8, 2, 8, 3, 8);
#endif
}
INLINE vec spread_upper(vec x) {
    vec zero = {0};
#if LANES == 16
    return __builtin_shufflevector(x, zero, 8, 16, 9, 16, 10, 16, 11, 16, 12, 16, 13, 16, 14, 16, 15, 16);
#else
    return __builtin_shufflevector(x, zero, 4, 8, 5, 8, 6, 8, 7, 8);
#endif
}

/* x where a lane is inside the image, 0 elsewhere, whatever x is there. */
INLINE vec only(vec x, const int32_t *inside) { return (vec)((mask)x & *(const mask *)inside); }

/* 8 x 8: rows `from_step` apart become columns, `to_step` apart. Of `rows` < 8, the last is read again for the others. */
INLINE void turn8(const float *from, int64_t from_step, int64_t rows, float *to, int64_t to_step) {
    v8 r[8], s[8];
    for (int i = 0; i < 8; i++) r[i] = load(from + least(i, rows - 1) * from_step);
    for (int i = 0; i < 8; i += 2) {
        s[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        s[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + j] = __builtin_shufflevector(s[i + j], s[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            r[i + j + 2] = __builtin_shufflevector(s[i + j], s[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++)
        store(to + i * to_step, __builtin_shufflevector(r[i], r[i + 4], 0, 1, 2, 3, 8, 9, 10, 11));
    for (int i = 0; i < 4; i++)
        store(to + (i + 4) * to_step, __builtin_shufflevector(r[i], r[i + 4], 4, 5, 6, 7, 12, 13, 14, 15));
}

/* Rows of a tile where `rows` are shared out among as few tiles as can be: 8 are 4 and 4, not 6 and 2. */
INLINE int64_t tile_rows(int64_t rows) {
    int64_t tiles = (rows + ROWS - 1) / ROWS;
    return (rows + tiles - 1) / tiles;
}

/* PIXELS output pixels, `count` of them real: their rows and columns, and where each lies in a channel of the output. */
typedef struct {
    int64_t count, row[PIXELS], column[PIXELS], place[PIXELS];
    int in_one_row, placed_in_line;
} Panel;

static void find_pixels(const Window *w, int64_t pixel, int64_t count, Panel *panel) {
    int64_t y = pixel / w->out_width, x = pixel % w->out_width;
    panel->count = count;
    panel->in_one_row = x + count <= w->out_width;
    for (int64_t q = 0; q < PIXELS; q++) {
        panel->row[q] = y;
        panel->column[q] = x;
        panel->place[q] = y * w->out_step[2] + x * w->out_step[3];
        if (++x == w->out_width) x = 0, y++;
    }
    panel->placed_in_line = panel->place[count - 1] - panel->place[0] == count - 1;
}

/* Where the pixels of a panel find one tap: side by side from `offset` on, or at every second place from there on, all
 * of them or those `inside` the image; or each by itself. */
typedef struct {
    enum { NONE, ALL, SOME, ALL_SECOND, SOME_SECOND, SCATTERED } kind;
    int64_t offset;
    int32_t inside[PIXELS]; /* of SOME: all bits set, or none */
    int64_t each[PIXELS];   /* of SCATTERED: -1 outside the image */
    float k[PIXELS];
} Tap;

/* Pixel q of a panel sees a tap at this row and column. */
INLINE int is_inside(const Window *w, int64_t row, int64_t column) {
    return (row >= 0) & (row < w->height) & (column >= 0) & (column < w->width);
}

/* The taps of a panel. `kernel` is K's first tap of this image. */
INLINE void find_taps(const Window *w, const float *kernel, const Panel *panel, Tap *tap) {
    int64_t count = panel->count, y = panel->row[0], x = panel->column[0], plane = w->height * w->width;
    int64_t along = w->kernel_step[4], from_k = y * w->kernel_step[3] + x * along;
    int k_in_line = along == 1 && (panel->in_one_row || w->kernel_step[3] == w->out_width);
    /* An output as wide as the input finds its taps side by side from row to row. */
    int as_wide = w->stride[0] == 1 && w->out_width == w->width;
    int in_line = w->stride[1] == 1 && (panel->in_one_row || as_wide);
    int every_second = w->stride[1] == 2 && panel->in_one_row;
    for (int64_t i = 0; i < w->kernel[0]; i++)
        for (int64_t j = 0; j < w->kernel[1]; j++, tap++) {
            const float *k = kernel + i * w->kernel_step[1] + j * w->kernel_step[2];
            memset(tap->k, 0, sizeof tap->k);
            if (k_in_line)
                memcpy(tap->k, k + from_k, count * sizeof(float));
            else
                for (int64_t q = 0; q < count; q++)
                    tap->k[q] = k[panel->row[q] * w->kernel_step[3] + panel->column[q] * along];
            int64_t down = i * w->dilation[0] - w->padding[0], across = j * w->dilation[1] - w->padding[1];
            int64_t row = y * w->stride[0] + down, column = x * w->stride[1] + across;
            int row_inside = row >= 0 && row < w->height;
            tap->offset = row * w->width + column;
            tap->kind = NONE;
            if (panel->in_one_row && !row_inside) continue;
            if (in_line && panel->in_one_row && count == PIXELS && column >= 0 && column + PIXELS <= w->width) {
                tap->kind = ALL;
                continue;
            }
            if (every_second && count == PIXELS && column >= 0 && column + 2 * PIXELS <= w->width) {
                tap->kind = ALL_SECOND;
                continue;
            }
            int64_t apart = every_second ? 2 : 1;
            if ((in_line || every_second) && tap->offset >= 0 && tap->offset + apart * PIXELS <= plane) {
                tap->kind = every_second ? SOME_SECOND : SOME;
                for (int64_t q = 0; q < PIXELS; q++) {
                    int64_t r = panel->row[q] * w->stride[0] + down, c = panel->column[q] * apart + across;
                    tap->inside[q] = -((q < count) & is_inside(w, r, c));
                }
                continue;
            }
            tap->kind = SCATTERED;
            for (int64_t q = 0; q < PIXELS; q++) {
                int64_t r = panel->row[q] * w->stride[0] + down, c = panel->column[q] * w->stride[1] + across;
                tap->each[q] = q < count && is_inside(w, r, c) ? r * w->width + c : -1;
            }
        }
}

/* Taps times K, channel by channel from `channel` on: [channels, taps, PIXELS]. */
INLINE void pack_panel(const Tap *taps, int64_t count, const float *channel, int64_t channels, int64_t plane,
                       float *panel) {
    for (int64_t c = 0; c < channels; c++, channel += plane)
        for (int64_t t = 0; t < count; t++, panel += PIXELS) {
            const Tap *tap = taps + t;
            const float *v = channel + tap->offset;
            switch (tap->kind) {
            case ALL:
                put(panel, get(v) * get(tap->k));
                put(panel + LANES, get(v + LANES) * get(tap->k + LANES));
                break;
            case ALL_SECOND:
                put(panel, even(get(v), get(v + LANES)) * get(tap->k));
                put(panel + LANES, even(get(v + 2 * LANES), get(v + 3 * LANES)) * get(tap->k + LANES));
                break;
            case SOME_SECOND:
                put(panel, only(even(get(v), get(v + LANES)), tap->inside) * get(tap->k));
                put(panel + LANES, only(even(get(v + 2 * LANES), get(v + 3 * LANES)), tap->inside + LANES) *
                                       get(tap->k + LANES));
                break;
            case SCATTERED:
                for (int64_t q = 0; q < PIXELS; q++)
                    panel[q] = tap->each[q] < 0 ? 0.0f : channel[tap->each[q]] * tap->k[q];
                break;
            case SOME:
                put(panel, only(get(v), tap->inside) * get(tap->k));
                put(panel + LANES, only(get(v + LANES), tap->inside + LANES) * get(tap->k + LANES));
                break;
            default: memset(panel, 0, PIXELS * sizeof(float));
            }
        }
}

/* How many elements deep so many products are. */
INLINE int64_t steps_of(int64_t depth) { return (depth + DEPTHS - 1) / DEPTHS; }

#ifdef BFLOAT16
/* Where lines are written that `as_elements` makes elements of: somewhere else. */
INLINE float *lines_of(element *to, float *spare) { return (void)to, spare; }

/* Lines of floats, [depth, width], as elements, [steps, width]; rounded to nearest even, with zeros behind an odd last. */
INLINE void as_elements(const float *from, int64_t depth, int64_t width, element *to) {
    static const uint16_t places[] = {0,  16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i in_pairs = _mm512_loadu_si512(places);
    for (int64_t d = 0; d < depth; d += 2, from += 2 * width, to += width)
        for (int64_t i = 0; i < width; i += LANES) {
            int64_t count = least(LANES, width - i);
            vec lower = get_some(from + i, count), upper = d + 1 < depth ? get_some(from + width + i, count) : (vec){0};
            __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)upper, (__m512)lower);
            put_some((float *)to + i, (vec)_mm512_permutexvar_epi16(in_pairs, both), count);
        }
}

INLINE vec add_product(vec sum, vec taps, element weight) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)taps, (__m512bh)_mm512_set1_epi32((int)weight));
}
#else
/* Where lines are written that `as_elements` makes elements of: in their place, as they are that. */
INLINE float *lines_of(element *to, float *spare) { return (void)spare, to; }
INLINE void as_elements(const float *lines, int64_t depth, int64_t width, element *to) {
    (void)lines, (void)depth, (void)width, (void)to;
}

INLINE vec add_product(vec sum, vec taps, element weight) { return sum + taps * weight; }
#endif

/* out[rows, pixels] (+)= weights[steps, rows]^T taps[steps, PIXELS], started from `start` where given. */
INLINE void tile_of(int rows, int64_t steps, const element *weights, const element *taps, float *out, int64_t out_step,
                    const Panel *panel, const float *start) {
    vec sum[ROWS][2];
    for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = (vec){0};
    for (int64_t d = 0; d < steps; d++, weights += rows, taps += PIXELS) {
        vec left = get((const float *)taps), right = get((const float *)taps + LANES);
        for (int r = 0; r < rows; r++) {
            sum[r][0] = add_product(sum[r][0], left, weights[r]);
            sum[r][1] = add_product(sum[r][1], right, weights[r]);
        }
    }
    for (int r = 0; r < rows; r++, out += out_step) {
        if (panel->count == PIXELS && panel->placed_in_line) {
            float *to = out + panel->place[0];
            put(to, sum[r][0] + (start ? (vec){0} + start[r] : get(to)));
            put(to + LANES, sum[r][1] + (start ? (vec){0} + start[r] : get(to + LANES)));
            continue;
        }
        float edge[PIXELS];
        put(edge, sum[r][0]);
        put(edge + LANES, sum[r][1]);
        for (int64_t q = 0; q < panel->count; q++) {
            float *to = out + panel->place[q];
            *to = edge[q] + (start ? start[r] : *to);
        }
    }
}

/* CALL(n) for every number of rows of a tile: in a switch they are constants, so that sums stay in registers. */
#define SIX_ROWS(CALL) CALL(1) CALL(2) CALL(3) CALL(4) CALL(5) CALL(6)
#if LANES == 16
#define ALL_ROWS(CALL) SIX_ROWS(CALL) CALL(7) CALL(8) CALL(9) CALL(10) CALL(11) CALL(12) CALL(13) CALL(14)
#else
#define ALL_ROWS(CALL) SIX_ROWS(CALL)
#endif

/* `tile_of` with a constant number of rows. */
INLINE void tile(int64_t rows, int64_t steps, const element *weights, const element *taps, float *out, int64_t out_step,
                 const Panel *panel, const float *start) {
    switch (rows) {
#define CALL(n) \
    case n: tile_of(n, steps, weights, taps, out, out_step, panel, start); break;
        ALL_ROWS(CALL)
#undef CALL
    }
}
