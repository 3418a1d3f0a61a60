/* Calls compiled kernels for another process: under qemu-aarch64, those of an ARM processor. See emulated_arm.py. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h" /* declares each, and `static const struct { const char *name; void *kernel; } KERNELS[]` */

enum { MOST = 16 };
/* Numbers and pointers go in registers and on the stack by their order, floats in registers of their own. */
typedef int Kernel(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                   int64_t, int64_t, int64_t, int64_t, int64_t, float);

static void take(void *to, size_t bytes) {
    if (bytes && fread(to, bytes, 1, stdin) != 1) exit(0); /* the other process has ended */
}

static int64_t number(void) {
    int64_t n;
    take(&n, sizeof n);
    return n;
}

int main(void) {
    for (;;) {
        char name[64] = {0}, *memory[MOST];
        int64_t size[MOST], given[MOST] = {0}, count;
        float real = 0;
        take(name, (size_t)number());
        count = number();
        for (int64_t i = 0; i < count; i++) {
            size[i] = number();
            memory[i] = aligned_alloc(64, (size_t)(size[i] + 64) / 64 * 64);
            take(memory[i], (size_t)size[i]);
        }
        int64_t arguments = number();
        for (int64_t i = 0; i < arguments; i++) {
            int64_t block = number();
            given[i] = number();
            if (block >= 0) given[i] += (int64_t)memory[block];
        }
        take(&real, sizeof real);
        int64_t failed = -1;
        for (size_t k = 0; k < sizeof KERNELS / sizeof *KERNELS; k++)
            if (!strcmp(KERNELS[k].name, name))
                failed = ((Kernel *)KERNELS[k].kernel)(given[0], given[1], given[2], given[3], given[4], given[5], given[6],
                                                       given[7], given[8], given[9], given[10], given[11], given[12],
                                                       given[13], given[14], given[15], real);
        fwrite(&failed, sizeof failed, 1, stdout);
        for (int64_t i = 0; i < count; i++) {
            fwrite(memory[i], (size_t)size[i], 1, stdout);
            free(memory[i]);
        }
        fflush(stdout);
    }
}
