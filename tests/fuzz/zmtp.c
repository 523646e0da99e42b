/* SPDX-License-Identifier: Apache-2.0 */
/* Whatever a router may send, the shim's ZMTP parser answers with a message, or with an error and nothing else. */
#include "zmtp.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void converse(int fd)
{
    uint8_t message[ZMTP_MESSAGE_MAX];
    ssize_t got;

    if (zmtp_greet(fd) != 0)
        return;
    do {
        got = zmtp_receive(fd, message, sizeof(message));
        if (got > (ssize_t)sizeof(message))
            abort();
    } while (got >= 0 && zmtp_send(fd, message, (size_t)got) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    /* A greeting that is right, where the input asks for it, so that frames are reached at once. */
    static const uint8_t greeting[64] = {0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 0, 'N', 'U', 'L', 'L'};
    static const uint8_t ready[] = "\4\32\5READY\13Socket-Type\0\0\0\6ROUTER";
    int ends[2];

    if (size > 32768 || socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
        return 0;
    if (size > 0 && data[0] & 1) {
        if (send(ends[1], greeting, sizeof(greeting), 0) < 0 || send(ends[1], ready, sizeof(ready) - 1, 0) < 0)
            abort();
    }
    if (size > 1 && send(ends[1], data + 1, size - 1, 0) < 0)
        abort();
    shutdown(ends[1], SHUT_WR);
    converse(ends[0]);
    close(ends[0]);
    close(ends[1]);
    return 0;
}
