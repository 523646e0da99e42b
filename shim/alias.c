/* SPDX-License-Identifier: Apache-2.0 */
/*
 * librdmacm.so.1, librdmacm.so and libibverbs.so are empty libraries: what an
 * application looks up in one of them is found in the library that it needs,
 * libsluice.so.
 */
struct ibv_device;
void ibv_free_device_list(struct ibv_device **list);

/* A linker leaves out a library that nothing refers to. */
__attribute__((visibility("hidden"), used)) void (*const sluice_alias)(struct ibv_device **) = ibv_free_device_list;
