/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program that knows libibverbs by dlopen and dlsym only, as NCCL, Go and the JVM do.
 *
 *     ways-dlopen LIBRARY [SYMBOL VERSION]
 *
 * prints the devices that it finds. Given a symbol, it is looked up with dlvsym.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

struct ibv_device;

static void *must(void *symbol)
{
    if (!symbol) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    return symbol;
}

static void *find(void *library, const char *name, const char *version)
{
#ifdef __GLIBC__
    return must(dlvsym(library, name, version));
#else
    (void)version;
    return must(dlsym(library, name));
#endif
}

int main(int argc, char **argv)
{
    void *library = must(dlopen(argv[1], RTLD_NOW | RTLD_LOCAL));
    struct ibv_device **(*get_list)(int *) = find(library, "ibv_get_device_list", "IBVERBS_1.1");
    void (*free_list)(struct ibv_device **) = must(dlsym(library, "ibv_free_device_list"));
    const char *(*name)(struct ibv_device *) = must(dlsym(library, "ibv_get_device_name"));
    int count = 0;
    struct ibv_device **list = must(get_list(&count));

    if (argc == 4)
        find(library, argv[2], argv[3]);
    for (int i = 0; i < count; i++)
        puts(name(list[i]));
    free_list(list);
    return 0;
}
