/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Holding other threads' writes off a range while its pages are exchanged.
 *
 * With userfaultfd(2) both user code and system calls wait. Without it the range is
 * made read-only and a SIGSEGV handler lets user code wait; a system call that
 * writes into the range in these microseconds gets EFAULT.
 *
 * One guard at a time (the arena's lock). Between guard_close and guard_open nothing
 * may be written that could lie in the range: no malloc, no stdio, no errno.
 */
#ifndef SLUICE_SHIM_GUARD_H
#define SLUICE_SHIM_GUARD_H

#include <stdbool.h>
#include <stdint.h>

/* Takes the open /dev/userfaultfd over (-1: none). */
void guard_init(int userfaultfd_device_fd);
void guard_exit(void);

struct guard {
    uint64_t start, length;
    int protection; /* of the range, mmap's */
    bool faults;    /* by userfaultfd */
};

/* From here nobody writes. 0 or errno: the range is as before then. */
int guard_close(struct guard *guard, bool anonymous);

/* The range was replaced: who waited goes on, in the new pages. */
void guard_open(const struct guard *guard);

/* It was not replaced: as before. */
void guard_give_up(const struct guard *guard);

#endif
