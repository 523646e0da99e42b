/* SPDX-License-Identifier: Apache-2.0 */
/* A test program: cases that CHECK, and a last line that counts. */
#ifndef SLUICE_CHECK_H
#define SLUICE_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                            \
    do {                                                                            \
        if (!(condition)) {                                                         \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                                \
        }                                                                           \
    } while (0)

#define RUN(test)                   \
    do {                            \
        test();                     \
        printf("ok %s\n", #test);   \
    } while (0)

#endif
