/* What poolings share, of channels one after the other and side by side. */
#pragma once

#include "window.h"

/* K of a band of rows, [rows, taps, whole vectors], which all channels that share it read there. */
INLINE void pack_kernel(const Window *w, const float *kernel, int64_t rows, float *packed) {
    int64_t pixels = w->out_height * w->out_width, taps = w->kernel[0] * w->kernel[1], wide = w->out_width;
    for (int64_t r = 0; r < rows; r++, kernel += wide)
        for (int64_t t = 0; t < taps; t++, packed += whole_vectors(wide))
            for (int64_t x = 0; x < wide; x += LANES) put(packed + x, get_up_to(kernel + t * pixels + x, wide - x));
}
