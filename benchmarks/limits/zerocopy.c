/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What MSG_ZEROCOPY is worth on a wire: one TCP stream in pieces of 1 MiB, as the tcp transport sends them.
 *
 *     zerocopy PORT                        receives until the other end closes
 *     zerocopy PORT ADDRESS copy           sends as always; prints GB/s
 *     zerocopy PORT ADDRESS zerocopy       the same with MSG_ZEROCOPY; prints GB/s, and how many % of the pieces the
 *                                          kernel has copied after all (SO_EE_CODE_ZEROCOPY_COPIED)
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/errqueue.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 1 << 20, PIECES = 64, SECONDS = 2 };

static uint32_t finished, copied;

#define CHECK(condition, what)   \
    do {                         \
        if (!(condition)) {      \
            perror(what);        \
            exit(1);             \
        }                        \
    } while (0)

static double now_s(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void receive(struct sockaddr_in *address)
{
    int yes = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    uint8_t *buffer = malloc(PIECE);

    address->sin_addr.s_addr = htonl(INADDR_ANY);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    CHECK(!bind(listener, (struct sockaddr *)address, sizeof(*address)) && !listen(listener, 1), "listen");
    int fd = accept(listener, NULL, NULL);

    while (recv(fd, buffer, PIECE, 0) > 0)
        ;
}

/* What the kernel has done with. */
static void reap(int fd, int flags)
{
    struct {
        struct cmsghdr header;
        uint8_t data[128];
    } control;
    struct msghdr message = {.msg_control = &control, .msg_controllen = sizeof(control)};

    while (recvmsg(fd, &message, MSG_ERRQUEUE | flags) >= 0) {
        const struct sock_extended_err *error = (const void *)CMSG_DATA(&control.header);
        uint32_t count = error->ee_data - error->ee_info + 1;

        finished += count;
        if (error->ee_code & SO_EE_CODE_ZEROCOPY_COPIED)
            copied += count;
        message.msg_controllen = sizeof(control);
    }
}

static void send_for_a_while(const struct sockaddr_in *address, bool zerocopy)
{
    int yes = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    uint8_t *memory = malloc((size_t)PIECE * PIECES);
    uint64_t bytes = 0;
    uint32_t calls = 0;

    CHECK(!connect(fd, (const struct sockaddr *)address, sizeof(*address)), "connect");
    CHECK(!zerocopy || !setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &yes, sizeof(yes)), "SO_ZEROCOPY");
    memset(memory, 1, (size_t)PIECE * PIECES);
    double start = now_s();

    for (uint32_t i = 0; now_s() - start < SECONDS; i++) {
        ssize_t sent = send(fd, memory + (size_t)PIECE * (i % PIECES), PIECE, zerocopy ? MSG_ZEROCOPY : 0);

        CHECK(sent > 0 || errno == ENOBUFS, "send");
        bytes += sent > 0 ? (uint64_t)sent : 0;
        calls += sent > 0;
        if (zerocopy)
            reap(fd, MSG_DONTWAIT);
    }
    printf("%.3f", (double)bytes / (now_s() - start) / 1e9);
    while (zerocopy && finished < calls)
        reap(fd, MSG_DONTWAIT);
    printf(" %.0f\n", calls ? 100.0 * copied / calls : 0);
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(argc > 1 ? (uint16_t)atoi(argv[1]) : 0)};

    if (argc == 2) {
        receive(&address);
        return 0;
    }
    if (argc != 4) {
        fprintf(stderr, "usage: zerocopy PORT [ADDRESS copy|zerocopy]\n");
        return 1;
    }
    address.sin_addr.s_addr = inet_addr(argv[2]);
    send_for_a_while(&address, strcmp(argv[3], "zerocopy") == 0);
    return 0;
}
