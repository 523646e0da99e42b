/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a device is known not to do what a statement says. The test runs all the
 * same and its failure is printed with the reason, but doesn't count.
 */
#include <fnmatch.h>

#include "suite.h"

static const struct deviation deviations[] = {
    {NULL, NULL, false, NULL},
};

const struct deviation *deviation_of(const char *device, const char *test)
{
    for (const struct deviation *one = deviations; one->test; one++)
        if (strncmp(device, one->device, strlen(one->device)) == 0 && fnmatch(one->test, test, 0) == 0)
            return one;
    return NULL;
}
