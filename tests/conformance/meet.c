/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ends' own connection, beside the device: a socket that carries frames of
 * three kinds: what a test exchanges, how an end's test ended, and, once its process
 * is over, how it ended in all.
 */
#include <stddef.h>
#include <sys/socket.h>

#include "suite.h"

enum kind { KIND_DATA = 0x51554944, KIND_END, KIND_DONE };

struct frame {
    uint32_t kind;
    uint32_t size;
};

static bool send_frame(int socket, enum kind kind, const void *data, size_t size)
{
    uint8_t bytes[sizeof(struct frame) + 4096];
    struct frame frame = {.kind = kind, .size = (uint32_t)size};

    memcpy(bytes, &frame, sizeof(frame));
    memcpy(bytes + sizeof(frame), data, size);
    size += sizeof(frame);
    return send(socket, bytes, size, MSG_NOSIGNAL) == (ssize_t)size;
}

static bool receive(int socket, void *data, size_t size)
{
    return size == 0 || recv(socket, data, size, MSG_WAITALL) == (ssize_t)size;
}

void tell_end(int socket, const struct result *result)
{
    send_frame(socket, KIND_END, result, sizeof(*result));
}

void tell_done(int socket, const struct result *result)
{
    send_frame(socket, KIND_DONE, result, sizeof(*result));
}

bool await_done(int socket, struct result *result)
{
    struct frame frame;
    uint8_t data[4096];

    for (;;) {
        if (!receive(socket, &frame, sizeof(frame)) || frame.size > sizeof(data) ||
            !receive(socket, data, frame.size))
            return false;
        if (frame.kind == KIND_DONE) {
            memcpy(result, data, sizeof(*result));
            return true;
        }
    }
}

/* The other end's outcome becomes ours where it didn't go well. */
static void on_end(struct end *e, const struct result *theirs)
{
    if (theirs->outcome == OUTCOME_SKIPPED)
        SKIP("%s", theirs->reason);
    FAIL("the other end has left%s%s", theirs->reason[0] ? ": " : "", theirs->reason);
}

void look_after_other(struct end *e)
{
    struct {
        struct frame frame;
        struct result result;
    } waiting;

    ssize_t got = recv(e->socket, &waiting, sizeof(waiting), MSG_PEEK | MSG_DONTWAIT);

    if (got == 0)
        FAIL("the other end is gone");
    if (got == sizeof(waiting) && waiting.frame.kind != KIND_DATA && waiting.result.outcome != OUTCOME_OK)
        on_end(e, &waiting.result);
}

void exchange(struct end *e, const void *mine, void *theirs, size_t size)
{
    struct frame frame;

    CHECK(size <= 4096);
    if (!send_frame(e->socket, KIND_DATA, mine, size))
        FAIL("the other end is gone");
    /* An end's last word stays unread, for who looks for it after the test. */
    if (recv(e->socket, &frame, sizeof(frame), MSG_WAITALL | MSG_PEEK) != sizeof(frame))
        FAIL("the other end is gone");
    if (frame.kind != KIND_DATA) {
        uint8_t bytes[sizeof(frame) + sizeof(struct result)];
        struct result result;

        if (recv(e->socket, bytes, sizeof(bytes), MSG_WAITALL | MSG_PEEK) != sizeof(bytes))
            FAIL("the other end is gone");
        memcpy(&result, bytes + sizeof(frame), sizeof(result));
        on_end(e, &result);
    }
    if (frame.size != size || !receive(e->socket, &frame, sizeof(frame)) || !receive(e->socket, theirs, size))
        FAIL("the ends run different tests");
}

void meet(struct end *e)
{
    char here = 1, there;

    exchange(e, &here, &there, 1);
}
