/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ZMTP 3.0 (ZeroMQ RFC 23) as far as a DEALER on an AF_UNIX socket needs it, with
 * the NULL mechanism: a greeting, READY, then messages of one frame each. The
 * shim lives in other people's processes and brings no libzmq along.
 */
#ifndef SLUICE_SHIM_ZMTP_H
#define SLUICE_SHIM_ZMTP_H

#include <stddef.h>
#include <sys/types.h>

enum { ZMTP_MESSAGE_MAX = 1024 }; /* bytes of one message, either way */

/* Greets over a connected stream socket. 0 or errno (EPROTO: not what ZMTP says). */
int zmtp_greet(int fd);

/* Sends one message of one frame. 0 or errno. */
int zmtp_send(int fd, const void *data, size_t size);

/*
 * Receives one message of one frame into data. Returns its size, or a negative
 * errno: -EPROTO for several frames or one larger than size, -EIO at the end of
 * the connection. PING commands are answered on the way.
 */
ssize_t zmtp_receive(int fd, void *data, size_t size);

#endif
