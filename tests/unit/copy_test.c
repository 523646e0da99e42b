/* SPDX-License-Identifier: Apache-2.0 */
/* copy_ordered: every byte, no byte beside, for all small lengths and alignments. */
#include "copy.h"

#include <stdint.h>
#include <string.h>

#include "check.h"

static void all_alignments(void)
{
    static uint8_t from[8192], to[8192];

    for (unsigned i = 0; i < sizeof(from); i++)
        from[i] = (uint8_t)(i * 7 + (i >> 8));
    for (size_t to_shift = 0; to_shift < 72; to_shift += to_shift < 9 ? 1 : 7)
        for (size_t from_shift = 0; from_shift < 72; from_shift += from_shift < 9 ? 1 : 7)
            for (size_t length = 0; length < 5000; length += length < 600 ? 1 : 97) {
                memset(to, 0xee, sizeof(to));
                copy_ordered(to + 64 + to_shift, from + from_shift, length);
                CHECK(memcmp(to + 64 + to_shift, from + from_shift, length) == 0);
                CHECK(to[64 + to_shift - 1] == 0xee && to[64 + to_shift + length] == 0xee);
            }
}

int main(void)
{
    RUN(all_alignments);
    copy_init(); /* the wide loops, where this processor has them */
    RUN(all_alignments);
    return 0;
}
