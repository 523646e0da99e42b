/* SPDX-License-Identifier: Apache-2.0 */
#include "zmtp.h"

#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

enum { MORE = 1, LONG = 2, COMMAND = 4 };

/* Most answers are here sooner than a core that went idle meanwhile would be awake again. */
#define SPIN_NS 150000

static int send_all(int fd, const void *data, size_t size)
{
    const uint8_t *next = data;

    while (size) {
        ssize_t sent = send(fd, next, size, MSG_NOSIGNAL);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return errno == EPIPE || errno == ECONNRESET ? EIO : errno;
        next += sent;
        size -= (size_t)sent;
    }
    return 0;
}

static int receive_all(int fd, void *data, size_t size)
{
    uint8_t *next = data;

    while (size) {
        ssize_t got = recv(fd, next, size, 0);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return errno == ECONNRESET ? EIO : errno;
        if (got == 0)
            return EIO;
        next += got;
        size -= (size_t)got;
    }
    return 0;
}

/* Frame header and body in one piece: one system call, one wake-up of the router. */
static int send_frame(int fd, uint8_t flags, const void *data, size_t size)
{
    uint8_t frame[9 + ZMTP_MESSAGE_MAX];
    size_t header = 2;

    if (size > ZMTP_MESSAGE_MAX)
        return EMSGSIZE;
    frame[0] = flags;
    frame[1] = (uint8_t)size;
    if (size > 255) {
        frame[0] |= LONG;
        for (int i = 0; i < 8; i++)
            frame[1 + i] = (uint8_t)((uint64_t)size >> (56 - 8 * i));
        header = 9;
    }
    memcpy(frame + header, data, size);
    return send_all(fd, frame, header + size);
}

/* Returns early where something has come; that it has is for the receive to find. */
static void spin(int fd)
{
    struct timespec start, now;
    uint8_t byte;

    clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        if (recv(fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK) >= 0 || errno != EAGAIN)
            return;
        /* The router may be waiting for this very core. */
        sched_yield();
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - start.tv_sec) * 1000000000 + now.tv_nsec - start.tv_nsec < SPIN_NS);
}

/* Receives one frame; larger ones than size are a protocol error. */
static int receive_frame(int fd, uint8_t *flags, void *data, size_t size, size_t *got)
{
    uint8_t header[9];
    uint64_t length;

    spin(fd);
    int error = receive_all(fd, header, 2);

    if (error)
        return error;
    *flags = header[0];
    length = header[1];
    if (header[0] & LONG) {
        error = receive_all(fd, header + 2, 7);
        if (error)
            return error;
        length = 0;
        for (int i = 0; i < 8; i++)
            length = length << 8 | header[1 + i];
    }
    if (length > size || (header[0] & ~(MORE | LONG | COMMAND)) || (header[0] & (MORE | COMMAND)) == (MORE | COMMAND))
        return EPROTO;
    *got = (size_t)length;
    return receive_all(fd, data, *got);
}

/* A command starts with its name: one byte of length, then the letters. */
static bool is_command(const uint8_t *data, size_t size, const char *name)
{
    size_t length = strlen(name);

    return size > length && data[0] == length && memcmp(data + 1, name, length) == 0;
}

int zmtp_greet(int fd)
{
    /* Signature, version 3.0, mechanism NULL padded to 20, as-server 0, filler: 64 bytes. */
    static const uint8_t greeting[64] = {0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 0, 'N', 'U', 'L', 'L'};
    static const uint8_t ready[] = "\5READY\13Socket-Type\0\0\0\6DEALER";
    uint8_t theirs[64], command[ZMTP_MESSAGE_MAX], flags;
    size_t size;
    int error = send_all(fd, greeting, sizeof(greeting));

    if (!error)
        error = receive_all(fd, theirs, sizeof(theirs));
    if (error)
        return error;
    if (theirs[0] != 0xff || theirs[9] != 0x7f || theirs[10] < 3 || memcmp(theirs + 12, greeting + 12, 20) != 0)
        return EPROTO;
    error = send_frame(fd, COMMAND, ready, sizeof(ready) - 1);
    if (!error)
        error = receive_frame(fd, &flags, command, sizeof(command), &size);
    if (error)
        return error;
    return (flags & COMMAND) && is_command(command, size, "READY") ? 0 : EPROTO;
}

int zmtp_send(int fd, const void *data, size_t size)
{
    return send_frame(fd, 0, data, size);
}

static int answer_command(int fd, uint8_t *command, size_t size)
{
    uint8_t pong[5 + 16] = "\4PONG";

    /* The other end has refused something and is about to close. */
    if (is_command(command, size, "ERROR"))
        return EPROTO;
    if (!is_command(command, size, "PING"))
        return 0; /* nothing else concerns a DEALER */
    /* PING: name, two bytes of time to live, up to 16 bytes of context to send back. */
    size_t context = size > 7 ? size - 7 : 0;

    if (context > 16)
        return EPROTO;
    memcpy(pong + 5, command + 7, context);
    return send_frame(fd, COMMAND, pong, 5 + context);
}

ssize_t zmtp_receive(int fd, void *data, size_t size)
{
    for (;;) {
        uint8_t command[ZMTP_MESSAGE_MAX], flags;
        size_t got;
        int error = receive_frame(fd, &flags, command, sizeof(command), &got);

        if (error)
            return -error;
        if (flags & COMMAND) {
            error = answer_command(fd, command, got);
            if (error)
                return -error;
            continue;
        }
        if ((flags & MORE) || got > size)
            return -EPROTO;
        memcpy(data, command, got);
        return (ssize_t)got;
    }
}
