/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "arena.h"
#include "atomic.h"
#include "clock.h"
#include "futex.h"
#include "memory.h"
#include "objects.h"
#include "zmtp.h"

#define SEGMENT_SIZE (1ull << SLUICE_SEGMENT_SHIFT)
enum { WELCOME_FILES = 4 };

struct session session = {.descriptors = -1, .control = -1};

_Static_assert(sizeof(struct sluice_devices_reply) <= ZMTP_MESSAGE_MAX, "the largest answer");
_Static_assert(sizeof(struct sluice_device_reply) <= ZMTP_MESSAGE_MAX, "a device's answer");
_Static_assert(sizeof(struct sluice_cm_event_reply) <= ZMTP_MESSAGE_MAX, "rdma_cm's largest answer");
_Static_assert(sizeof(struct sluice_modify_qp_request) <= ZMTP_MESSAGE_MAX, "the largest request");

static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;    /* connecting */
static pthread_mutex_t control_lock = PTHREAD_MUTEX_INITIALIZER; /* the zmq connection */
static pthread_mutex_t command_lock = PTHREAD_MUTEX_INITIALIZER; /* the mailbox */
static pthread_once_t fork_handlers = PTHREAD_ONCE_INIT;
static uint64_t next_cookie = 1;

void session_debug(const char *format, ...)
{
    va_list arguments;

    if (!secure_getenv("SLUICE_DEBUG"))
        return;
    va_start(arguments, format);
    fputs("libsluice: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

/* ---- connecting -------------------------------------------------------- */

static int connect_to(const char *directory, const char *name, int type)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if ((size_t)snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s", directory, name) >=
        sizeof(address.sun_path)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address))) {
        int error = errno;

        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

/* Receives one packet with its descriptors, all close-on-exec. Returns its size or a negative errno. */
static ssize_t receive_files(int fd, void *data, size_t size, int *files, unsigned max_files, unsigned *count)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(WELCOME_FILES * sizeof(int))];
    } control;
    struct iovec part = {.iov_base = data, .iov_len = size};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t got;

    do
        got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    *count = 0;
    if (got <= 0)
        return got ? -errno : -EIO;
    for (struct cmsghdr *part_of = CMSG_FIRSTHDR(&message); part_of; part_of = CMSG_NXTHDR(&message, part_of)) {
        if (part_of->cmsg_level != SOL_SOCKET || part_of->cmsg_type != SCM_RIGHTS)
            continue;
        unsigned here = (unsigned)((part_of->cmsg_len - CMSG_LEN(0)) / sizeof(int));

        for (unsigned i = 0; i < here; i++) {
            int file;

            memcpy(&file, CMSG_DATA(part_of) + i * sizeof(int), sizeof(int));
            if (*count < max_files)
                files[(*count)++] = file;
            else
                close(file);
        }
    }
    return got;
}

static void close_files(int *files, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (files[i] >= 0)
            close(files[i]);
}

static int map_shared(const int *files)
{
    void *page = mmap(NULL, sizeof(*session.page), PROT_READ, MAP_SHARED, files[0], 0);

    if (page == MAP_FAILED)
        return errno;
    void *segment = mmap(NULL, SEGMENT_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, files[1], 0);

    if (segment == MAP_FAILED) {
        int error = errno;

        munmap(page, sizeof(*session.page));
        return error;
    }
    session.page = page;
    session.segment = segment;
    session.head = segment;
    return 0;
}

static void close_file(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* Undoes a connection that failed halfway; a later call begins anew. */
static void undo(void)
{
    close_file(&session.control);
    close_file(&session.descriptors);
    if (session.segment) {
        munmap(session.segment, SEGMENT_SIZE);
        munmap(session.page, sizeof(*session.page));
        session.segment = NULL;
        session.head = NULL;
        session.page = NULL;
    }
}

/*
 * The connection is of no use any more. The descriptors stay open until the process
 * ends: another thread may be looking at them, and their numbers must not become
 * files of the application meanwhile.
 */
static void hang_up(void)
{
    if (session.control >= 0)
        shutdown(session.control, SHUT_RDWR);
    if (session.descriptors >= 0)
        shutdown(session.descriptors, SHUT_RDWR);
}

static int say_hello(const struct sluice_welcome *welcome)
{
    struct sluice_hello_request request = {.abi_version = SLUICE_ABI_VERSION};
    struct sluice_hello_reply reply;

    memcpy(request.token, welcome->token, sizeof(request.token));
    int error = session_call(SLUICE_OP_HELLO, &request, sizeof(request), &reply, sizeof(reply));

    if (error)
        return error;
    return reply.abi_version == SLUICE_ABI_VERSION ? 0 : EPROTO;
}

/* ---- fork -------------------------------------------------------------- */

enum { CHILD_MS = 10000 }; /* a child that takes longer for its copy sees what its parent writes meanwhile */

/*
 * The child says on this pipe that it has its copy; -1: there is nothing to copy. Written before the fork only: where
 * these words lie in registered memory, parent and child share them until the copy is made.
 */
static int copied_read = -1, copied_write = -1;

/* No other thread may be in the middle of anything that the child finds. */
static void before_fork(void)
{
    pthread_mutex_lock(&open_lock);
    memory_fork_prepare();
    pthread_mutex_lock(&control_lock);
    pthread_mutex_lock(&command_lock);
    pthread_mutex_lock(&objects_lock);
    events_fork_prepare();
    sluice_arena_fork_prepare();
    int fds[2];

    copied_read = copied_write = -1;
    if (session.open && pipe2(fds, O_CLOEXEC) == 0) {
        copied_read = fds[0];
        copied_write = fds[1];
    }
}

static void in_parent(void)
{
    int error = errno;

    if (copied_read >= 0) {
        struct pollfd copied = {.fd = copied_read, .events = POLLIN};

        close(copied_write);
        /* Also where there is no child, or it died: then nobody has the other end. */
        while (poll(&copied, 1, CHILD_MS) < 0 && errno == EINTR)
            ;
        close(copied_read);
    }
    sluice_arena_fork_parent();
    events_fork_parent();
    pthread_mutex_unlock(&objects_lock);
    pthread_mutex_unlock(&command_lock);
    pthread_mutex_unlock(&control_lock);
    memory_fork_parent();
    pthread_mutex_unlock(&open_lock);
    errno = error;
}

/*
 * The parent's session isn't the child's: not a byte of it may reach the parent's
 * rings or memory. It may open one of its own; the objects that it has of the
 * parent's are of no use there.
 */
static void in_child(void)
{
    sluice_arena_fork_child();
    close_file(&session.control);
    close_file(&session.descriptors);
    if (session.open) {
        session.open = false;
        /* The application may still hold queues: what it posts there goes nowhere. */
        mmap(session.segment, SEGMENT_SIZE, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        memset(qps, 0, sizeof(qps));
        cqs_fork_child();
        srqs_fork_child();
    }
    session.dead = false;
    events_fork_child();
    memory_fork_child();
    cm_fork_child();
    devices_fork_child();
    pthread_mutex_init(&open_lock, NULL);
    pthread_mutex_init(&control_lock, NULL);
    pthread_mutex_init(&command_lock, NULL);
    pthread_mutex_init(&objects_lock, NULL);
    if (copied_read >= 0) {
        close(copied_read);
        close(copied_write); /* the parent, which waits for its end, goes on */
    }
}

static void install_fork_handlers(void)
{
    pthread_atfork(before_fork, in_parent, in_child);
}

/* ---- greeting ---------------------------------------------------------- */

static int greet_router(const char *directory, const struct sluice_welcome *welcome)
{
    session.control = connect_to(directory, "control", SOCK_STREAM);
    if (session.control < 0)
        return errno;
    int error = zmtp_greet(session.control);

    return error ? error : say_hello(welcome);
}

static int connect_session(const char *directory)
{
    struct sluice_welcome welcome;
    int files[WELCOME_FILES];
    unsigned count = 0;
    int error = 0;

    session.descriptors = connect_to(directory, "descriptors", SOCK_SEQPACKET);
    if (session.descriptors < 0)
        return errno;
    ssize_t got = receive_files(session.descriptors, &welcome, sizeof(welcome), files, WELCOME_FILES, &count);

    if (got < 0)
        error = (int)-got;
    else if (got != sizeof(welcome) || count != 3 + (welcome.has_userfaultfd ? 1u : 0u))
        error = EPROTO;
    else if (welcome.abi_version != SLUICE_ABI_VERSION) {
        session_debug("the router speaks version %u, this library %u", welcome.abi_version, SLUICE_ABI_VERSION);
        error = EPROTO;
    }
    if (!error)
        error = map_shared(files);
    if (error) {
        close_files(files, count);
        return error;
    }
    close(files[0]);
    close(files[1]);
    error = sluice_arena_open(files[2], welcome.has_userfaultfd ? files[3] : -1);
    if (!error)
        error = greet_router(directory, &welcome);
    if (error) {
        sluice_arena_close();
        return error;
    }
    pthread_once(&fork_handlers, install_fork_handlers);
    store_release(&session.open, true);
    return 0;
}

/* What the environment says doesn't count for who has more rights than whoever set it. */
static void tell_privileged(void)
{
    static bool told;

    if (getenv("SLUICE_TENANT_DIR") && !__atomic_exchange_n(&told, true, __ATOMIC_RELAXED))
        fputs("libsluice: a setuid program, or one with capabilities of its file's: SLUICE_TENANT_DIR doesn't count, so there is no device\n",
              stderr);
}

int session_open(void)
{
    const char *directory = secure_getenv("SLUICE_TENANT_DIR");

    if (!directory) {
        tell_privileged();
        return ENOSYS;
    }
    pthread_mutex_lock(&open_lock);
    int error = session.dead ? EIO : 0;

    if (!error && !session.open) {
        error = connect_session(directory);
        if (error) {
            session_debug("no session in %s: %s", directory, strerror(error));
            undo();
        }
    }
    pthread_mutex_unlock(&open_lock);
    return error;
}

/* ---- calls ------------------------------------------------------------- */

static int receive_file(uint64_t cookie, int *fd)
{
    struct sluice_descriptor packet;
    unsigned count;
    ssize_t got = receive_files(session.descriptors, &packet, sizeof(packet), fd, 1, &count);

    if (got != sizeof(packet) || count != 1 || packet.cookie != cookie) {
        close_files(fd, count);
        return got < 0 ? (int)-got : EPROTO;
    }
    return 0;
}

static int send_file(uint64_t cookie, int fd)
{
    struct sluice_descriptor packet = {.cookie = cookie};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec part = {.iov_base = &packet, .iov_len = sizeof(packet)};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);

    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(int));
    return sendmsg(session.descriptors, &message, MSG_NOSIGNAL) == sizeof(packet) ? 0 : EIO;
}

/* give: a descriptor that goes with the request, or -1; take: where one that comes with the answer goes, or NULL. */
static int call(uint16_t op, void *request, uint16_t request_size, void *reply, uint16_t reply_size, int give,
                int *take)
{
    struct sluice_header *asked = request, *answered = reply;
    bool greeting = op == SLUICE_OP_HELLO;

    pthread_mutex_lock(&control_lock);
    *asked = (struct sluice_header){.op = op, .size = request_size, .cookie = next_cookie++};
    /* After a failure answers and requests may be out of step. */
    int error = session.control < 0 || session.dead || !(session.open || greeting)
                    ? EIO
                    : 0;

    if (!error && give >= 0)
        error = send_file(asked->cookie, give);
    if (!error)
        error = zmtp_send(session.control, request, request_size);
    if (!error) {
        ssize_t got = zmtp_receive(session.control, reply, reply_size);

        if (got < 0)
            error = (int)-got;
        else if ((size_t)got < sizeof(*answered) || answered->size != got || answered->op != op ||
                 answered->cookie != asked->cookie)
            error = EPROTO;
        else if (answered->status)
            error = -1; /* the router's refusal, not a broken connection */
        else if (got != reply_size)
            error = EPROTO;
    }
    if (!error && take)
        error = receive_file(asked->cookie, take);
    if (error > 0) {
        session_debug("the router is gone: %s", strerror(error));
        if (!greeting) {
            session.dead = true;
            hang_up();
        }
        error = EIO;
    }
    if (error < 0)
        error = answered->status;
    pthread_mutex_unlock(&control_lock);
    return error;
}

int session_call_fd(uint16_t op, void *request, uint16_t request_size, void *reply, uint16_t reply_size, int *fd)
{
    return call(op, request, request_size, reply, reply_size, -1, fd);
}

int session_call_with(uint16_t op, void *request, uint16_t request_size, void *reply, uint16_t reply_size, int fd)
{
    return call(op, request, request_size, reply, reply_size, fd, NULL);
}

int session_call(uint16_t op, void *request, uint16_t request_size, void *reply, uint16_t reply_size)
{
    return call(op, request, request_size, reply, reply_size, -1, NULL);
}

int session_call_handle(uint16_t op, uint32_t handle, uint32_t *new_handle)
{
    struct sluice_handle_request request = {.handle = handle};
    struct sluice_handle_reply reply;
    int error = session_call(op, &request, sizeof(request), &reply, sizeof(reply));

    if (!error && new_handle)
        *new_handle = reply.handle;
    return error;
}

/* ---- reaching the engine ----------------------------------------------- */

bool session_pins(void)
{
    return session.page && load_relaxed(&session.page->pins);
}

bool session_lost(void)
{
    struct pollfd socket = {.fd = session.descriptors, .events = POLLRDHUP};

    if (load_relaxed(&session.dead) || session.descriptors < 0)
        return true;
    return poll(&socket, 1, 0) > 0 && (socket.revents & (POLLHUP | POLLRDHUP | POLLERR | POLLNVAL));
}

bool session_gives_way(void)
{
    return session.head && load_relaxed(&session.head->give_way);
}

/* On which core the caller is, and one. */
static uint32_t current_core(void)
{
    return (uint32_t)(sched_getcpu() + 1);
}

static void wake_engine(void)
{
    /* Longer than it takes the engine from its word to its sleep, or from a wake-up to its first look. */
    enum { TURNS = 64 };

    /* Pairs with the fence in the engine's park(): it sees what was written, or we see that it sleeps. */
    full_fence();
    /*
     * It may have declared that it sleeps and not be there yet: then the wake-up
     * reaches nobody, and is repeated. A router that died asleep never takes the
     * word back.
     */
    for (unsigned turn = 1; __builtin_expect(load_relaxed(&session.page->parked), 0); turn++) {
        if (syscall(SYS_futex, &session.page->parked, FUTEX_WAKE, 1, NULL, NULL, 0) != 0)
            return;
        if (turn % 16 == 0 && session_lost())
            return;
        /*
         * It may be waiting for this very core. Where it is on another one there is nothing to give way to, and who does
         * has lost its core to whoever wants it, for a tick of some milliseconds.
         */
        if (turn >= TURNS || load_relaxed(&session.page->core) == current_core())
            sched_yield();
        else
            spin_hint();
    }
}

/* The router's worker stays away from there while cores are scarce (csrc/worker.c). */
static void say_core(void)
{
    uint32_t core = current_core();

    if (__atomic_load_n(&session.head->core, __ATOMIC_RELAXED) != core)
        __atomic_store_n(&session.head->core, core, __ATOMIC_RELAXED);
}

void session_ring(uint32_t handle)
{
    uint32_t word = handle / 64;

    say_core();
    __atomic_fetch_or(&session.head->words[word], 1ull << (handle % 64), __ATOMIC_SEQ_CST);
    __atomic_fetch_or(&session.head->summary[word / 64], 1ull << (word % 64), __ATOMIC_SEQ_CST);
    wake_engine();
}

void session_ring_srq(uint32_t handle)
{
    uint32_t word = handle / 64;

    __atomic_fetch_or(&session.head->srq_words[word], 1ull << (handle % 64), __ATOMIC_SEQ_CST);
    __atomic_fetch_or(&session.head->srq_summary, 1ull << word, __ATOMIC_SEQ_CST);
    wake_engine();
}

int session_command(struct sluice_command *command)
{
    struct sluice_command *mailbox;
    int error = 0;

    pthread_mutex_lock(&command_lock);
    if (!session.open || session.dead) {
        pthread_mutex_unlock(&command_lock);
        return EIO;
    }
    mailbox = &session.head->command;
    mailbox->op = command->op;
    mailbox->pd = command->pd;
    mailbox->access = command->access;
    mailbox->addr = command->addr;
    mailbox->length = command->length;
    mailbox->iova = command->iova;
    mailbox->key = command->key;
    mailbox->memory = command->memory;
    mailbox->flags = command->flags;
    mailbox->sleeping = 0;
    store_release(&mailbox->state, (uint32_t)SLUICE_COMMAND_POSTED);
    exchange(&session.head->command_rung, 1);
    wake_engine();

    for (int turn = 0; turn < 100 && load_acquire(&mailbox->state) != SLUICE_COMMAND_DONE; turn++)
        spin_hint();
    while (load_acquire(&mailbox->state) != SLUICE_COMMAND_DONE) {
        /* Pairs with the engine's fence between DONE and sleeping. */
        exchange(&mailbox->sleeping, 1);
        full_fence();
        if (load_relaxed(&mailbox->state) == SLUICE_COMMAND_DONE)
            break;
        futex_wait(&mailbox->state, SLUICE_COMMAND_POSTED, clock_now() + NS_PER_SECOND / 10);
        if (load_acquire(&mailbox->state) != SLUICE_COMMAND_DONE && session_lost()) {
            error = EIO;
            break;
        }
    }
    if (!error) {
        command->key = mailbox->key;
        error = command->status = mailbox->status;
    }
    store_relaxed(&mailbox->state, (uint32_t)SLUICE_COMMAND_IDLE);
    pthread_mutex_unlock(&command_lock);
    return error;
}
