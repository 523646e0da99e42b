/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rsockets (man rsocket) aren't there yet. They are exported all the same: the real
 * library's would work on ids that it knows nothing of.
 */
#include <errno.h>
#include <rdma/rsocket.h>

#include "objects.h"

#pragma GCC diagnostic ignored "-Wunused-parameter"

#define ABSENT            \
    do {                  \
        errno = ENOSYS;   \
        return -1;        \
    } while (0)

EXPORT int rsocket(int domain, int type, int protocol)
{
    ABSENT;
}

EXPORT int rbind(int socket, const struct sockaddr *addr, socklen_t addrlen)
{
    ABSENT;
}

EXPORT int rlisten(int socket, int backlog)
{
    ABSENT;
}

EXPORT int raccept(int socket, struct sockaddr *addr, socklen_t *addrlen)
{
    ABSENT;
}

EXPORT int rconnect(int socket, const struct sockaddr *addr, socklen_t addrlen)
{
    ABSENT;
}

EXPORT int rshutdown(int socket, int how)
{
    ABSENT;
}

EXPORT int rclose(int socket)
{
    ABSENT;
}

EXPORT ssize_t rrecv(int socket, void *buf, size_t len, int flags)
{
    ABSENT;
}

EXPORT ssize_t rrecvfrom(int socket, void *buf, size_t len, int flags, struct sockaddr *src_addr, socklen_t *addrlen)
{
    ABSENT;
}

EXPORT ssize_t rrecvmsg(int socket, struct msghdr *msg, int flags)
{
    ABSENT;
}

EXPORT ssize_t rsend(int socket, const void *buf, size_t len, int flags)
{
    ABSENT;
}

EXPORT ssize_t rsendto(int socket, const void *buf, size_t len, int flags, const struct sockaddr *dest_addr,
                       socklen_t addrlen)
{
    ABSENT;
}

EXPORT ssize_t rsendmsg(int socket, const struct msghdr *msg, int flags)
{
    ABSENT;
}

EXPORT ssize_t rread(int socket, void *buf, size_t count)
{
    ABSENT;
}

EXPORT ssize_t rreadv(int socket, const struct iovec *iov, int iovcnt)
{
    ABSENT;
}

EXPORT ssize_t rwrite(int socket, const void *buf, size_t count)
{
    ABSENT;
}

EXPORT ssize_t rwritev(int socket, const struct iovec *iov, int iovcnt)
{
    ABSENT;
}

EXPORT int rpoll(struct pollfd *fds, nfds_t nfds, int timeout)
{
    ABSENT;
}

EXPORT int rselect(int nfds, fd_set *readfds, fd_set *writefds, fd_set *exceptfds, struct timeval *timeout)
{
    ABSENT;
}

EXPORT int rgetpeername(int socket, struct sockaddr *addr, socklen_t *addrlen)
{
    ABSENT;
}

EXPORT int rgetsockname(int socket, struct sockaddr *addr, socklen_t *addrlen)
{
    ABSENT;
}

EXPORT int rsetsockopt(int socket, int level, int optname, const void *optval, socklen_t optlen)
{
    ABSENT;
}

EXPORT int rgetsockopt(int socket, int level, int optname, void *optval, socklen_t *optlen)
{
    ABSENT;
}

EXPORT int rfcntl(int socket, int cmd, ... /* arg */)
{
    ABSENT;
}

EXPORT off_t riomap(int socket, void *buf, size_t len, int prot, int flags, off_t offset)
{
    ABSENT;
}

EXPORT int riounmap(int socket, void *buf, size_t len)
{
    ABSENT;
}

EXPORT size_t riowrite(int socket, const void *buf, size_t count, off_t offset, int flags)
{
    errno = ENOSYS;
    return (size_t)-1;
}

/* ---- epoll for them: rdma-core 65 and newer ------------------------------ */

struct epoll_event;

EXPORT int repoll_create(int flags)
{
    ABSENT;
}

EXPORT int repoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
    ABSENT;
}

EXPORT int repoll_wait(int epfd, struct epoll_event *events, int maxevents, int timeout)
{
    ABSENT;
}
