/* Convolution as an implicit matrix product: panels of output pixels, where they find their taps, and the tiles that
 * multiply them. */
#pragma once

#include "window.h"

typedef int32_t mask __attribute__((vector_size(4 * LANES), aligned(4)));

enum {
    /* Of a tile of the matrix product: output channels. 6 x 16 fills the registers of AVX2, 14 x 32 those of AVX-512. */
    ROWS = LANES == 16 ? 14 : 6,
    PIXELS = 2 * LANES, /* of a tile, side by side: a panel */
    DEPTH = 384,        /* products summed in a tile at a time, backward: a panel then stays in the first-level cache */
    BAND = 256,         /* output pixels whose panels are packed at a time, backward: 384 KiB, near the core */
    SLAB = 12, /* tiles of rows that share a panel before the next one: their weights stay in the second level */
};

INLINE vec even(vec a, vec b) {
#if LANES == 16
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
#else
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
#endif
}

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

/* out[rows, pixels] (+)= weights[depth, rows]^T taps[depth, PIXELS], started from `start` where given. */
INLINE void tile_of(int rows, int64_t depth, const float *weights, const float *taps, float *out, int64_t out_step,
                 const Panel *panel, const float *start) {
    vec sum[ROWS][2];
    for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = (vec){0};
    for (int64_t d = 0; d < depth; d++, weights += rows, taps += PIXELS) {
        vec left = get(taps), right = get(taps + LANES);
        for (int r = 0; r < rows; r++) {
            sum[r][0] += left * weights[r];
            sum[r][1] += right * weights[r];
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

/* `tile_of` with a constant number of rows, so that the sums stay in registers. */
INLINE void tile(int64_t rows, int64_t depth, const float *weights, const float *taps, float *out, int64_t out_step,
                 const Panel *panel, const float *start) {
    switch (rows) {
#if LANES == 16
    case 14: tile_of(14, depth, weights, taps, out, out_step, panel, start); break;
    case 13: tile_of(13, depth, weights, taps, out, out_step, panel, start); break;
    case 12: tile_of(12, depth, weights, taps, out, out_step, panel, start); break;
    case 11: tile_of(11, depth, weights, taps, out, out_step, panel, start); break;
    case 10: tile_of(10, depth, weights, taps, out, out_step, panel, start); break;
    case 9: tile_of(9, depth, weights, taps, out, out_step, panel, start); break;
    case 8: tile_of(8, depth, weights, taps, out, out_step, panel, start); break;
    case 7: tile_of(7, depth, weights, taps, out, out_step, panel, start); break;
#endif
    case 6: tile_of(6, depth, weights, taps, out, out_step, panel, start); break;
    case 5: tile_of(5, depth, weights, taps, out, out_step, panel, start); break;
    case 4: tile_of(4, depth, weights, taps, out, out_step, panel, start); break;
    case 3: tile_of(3, depth, weights, taps, out, out_step, panel, start); break;
    case 2: tile_of(2, depth, weights, taps, out, out_step, panel, start); break;
    default: tile_of(1, depth, weights, taps, out, out_step, panel, start);
    }
}
