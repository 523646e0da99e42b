/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one copy costs at best: one thread's memcpy between two shared mappings,
 * over and over between the same two places, as perftest does.
 *
 *     memcpy SIZE        bytes
 *
 * prints GB/s (10^9 bytes).
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static const double SECONDS = 1.0;

static double now_s(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static uint8_t *map_shared(size_t size)
{
    int fd = memfd_create("memcpy", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, (off_t)size)) {
        perror("memcpy");
        exit(1);
    }
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (memory == MAP_FAILED) {
        perror("memcpy");
        exit(1);
    }
    close(fd);
    memset(memory, 1, size);
    return memory;
}

int main(int argc, char **argv)
{
    size_t size = argc == 2 ? strtoul(argv[1], NULL, 0) : 0;

    if (size == 0 || size > 1ul << 30) {
        fprintf(stderr, "memcpy: a size between 1 and 1 GiB\n");
        return 2;
    }
    uint8_t *from = map_shared(size), *to = map_shared(size);
    double start = now_s(), end;
    uint64_t copied = 0;

    do {
        for (int i = 0; i < 64; i++) {
            memcpy(to, from, size);
            __asm__ volatile("" ::: "memory");
        }
        copied += 64 * size;
        end = now_s();
    } while (end - start < SECONDS);
    printf("%.2f\n", (double)copied / (end - start) / 1e9);
    return 0;
}
