/* CIE L*a*b* divided by 100, of sRGB: functional/colour.py says the equations. */
#include "window.h"

typedef struct {
    int64_t batch, channels, pixels, reversed; /* the channels are blue, green, red */
} Colours;

enum { CHUNK = 4096 }; /* pixels that a thread takes at a time */

INLINE vec where(whole_vec mask, vec yes, vec no) { return (vec)(((whole_vec)yes & mask) | ((whole_vec)no & ~mask)); }

/* ((c + 0.055) / 1.055)^2.4 by its Chebyshev polynomial of degree 11 on 0.04045..1, and c / 12.92 below. */
INLINE vec linear(vec c) {
    static const float of[] = {
        -1.12644181f, 3.25623008f, -5.55843308f, 6.27138805f, -4.99514254f, 2.98684804f,
        -1.50341048f, 0.986809392f, 0.471423003f, 0.0360838174f, 0.000838338243f};
    vec sum = (vec){0} + 0.173807211f;
    for (int i = 0; i < 11; i++) sum = sum * c + of[i];
    return where(c <= 0.04045f, c * (1 / 12.92f), sum);
}

/* The cube root above 0.008856, a line below. A third of the bits is within 6 % of it; Halley's rule twice from there. */
INLINE vec root(vec x) {
    vec third = __builtin_convertvector((whole_vec)x, vec) * (1.0f / 3) + 709921077.0f;
    vec y = (vec)__builtin_convertvector(third, whole_vec);
    for (int i = 0; i < 2; i++) {
        vec cube = y * y * y;
        y *= (cube + 2 * x) / (2 * cube + x);
    }
    return where(x > 0.008856f, y, x * 7.787f + 16.0f / 116);
}

/* A channel in 0..1, linear. */
INLINE vec channel(const float *at, int64_t count, float std, float mean) {
    vec c = (count == LANES ? get(at) : get_some(at, count)) * std + mean;
    c = where(c < 0, (vec){0}, c);
    return linear(where(c > 1, (vec){0} + 1, c));
}

INLINE void keep(float *at, vec x, int64_t count) {
    if (count == LANES)
        put(at, x);
    else
        put_some(at, x, count);
}

FOR_EVERY_CPU
static void convert(const Colours *e, const float *image, const float *mean, const float *std, float *out,
                    int64_t first, int64_t last) {
    int64_t plane = e->pixels, red = e->reversed ? 2 : 0, blue = 2 - red;
    for (int64_t x = first; x < last; x += LANES) {
        int64_t count = least(last - x, LANES);
        if (e->channels == 1) {
            keep(out + x, root(channel(image + x, count, *std, *mean)) * 1.16f - 0.16f, count);
            continue;
        }
        vec r = channel(image + red * plane + x, count, std[red], mean[red]);
        vec g = channel(image + plane + x, count, std[1], mean[1]);
        vec b = channel(image + blue * plane + x, count, std[blue], mean[blue]);
        /* of D65's white: the rows of sRGB's matrix over their sums */
        vec along_x = root(r * (0.412453f / 0.950456f) + g * (0.357580f / 0.950456f) + b * (0.180423f / 0.950456f));
        vec along_y = root(r * 0.212671f + g * 0.715160f + b * 0.072169f);
        vec along_z = root(r * (0.019334f / 1.088754f) + g * (0.119193f / 1.088754f) + b * (0.950227f / 1.088754f));
        keep(out + x, along_y * 1.16f - 0.16f, count);
        keep(out + plane + x, (along_x - along_y) * 5, count);
        keep(out + 2 * plane + x, (along_y - along_z) * 2, count);
    }
}

int pac_lab(const Colours *e, const float *image, const float *mean, const float *std, float *out, int64_t threads) {
    int64_t chunks = (e->pixels + CHUNK - 1) / CHUNK, each = e->channels * e->pixels;
#pragma omp parallel for collapse(2) num_threads(threads)
    for (int64_t i = 0; i < e->batch; i++)
        for (int64_t chunk = 0; chunk < chunks; chunk++)
            convert(e, image + i * each, mean, std, out + i * each, chunk * CHUNK, least((chunk + 1) * CHUNK, e->pixels));
    return 0;
}
