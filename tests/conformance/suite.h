/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The conformance suite: each statement of verbs semantics is one TEST.
 *
 * A test is one function that both ends of a connection run at the same time,
 * each with a freshly opened device: two threads of one process, two processes,
 * or two nodes. The end that is `first` asks (requester), the other one answers,
 * and they wait for each other with meet(). What a test makes through this
 * header is destroyed after it, in reverse order.
 *
 * A test ends early in three ways: CHECK finds that a statement doesn't hold, SKIP
 * finds that the device says it can't do that, or the other end has ended early.
 */
#ifndef SLUICE_CONFORMANCE_SUITE_H
#define SLUICE_CONFORMANCE_SUITE_H

#include <errno.h>
#include <infiniband/verbs.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MEMORY = 1 << 18, DEPTH = 64, REASON = 240, OBJECTS = 512 };

enum { ALL_ACCESS = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ |
                    IBV_ACCESS_REMOTE_ATOMIC };

enum outcome { OUTCOME_NONE, OUTCOME_OK, OUTCOME_FAILED, OUTCOME_SKIPPED };

struct result {
    enum outcome outcome;
    char reason[REASON];
};

/* What the command line says (run.c). */
struct options {
    const char *device; /* NULL: the first */
    int gid_index;      /* -1: the first RoCE v2 one of an IPv4 address, else 0 */
    int patience;       /* seconds that a condition may take to come true */
};

/* What one end tells the other, so that it can be reached. */
struct address {
    uint64_t memory;
    uint32_t rkey;
    uint32_t qp_num;
    uint32_t srq_num;
    union ibv_gid gid;
};

struct object {
    int (*destroy)(void *object);
    void *object;
};

struct end {
    bool first;
    const struct options *options;
    int socket; /* to the other end, see meet.c */
    int gid_index;
    struct ibv_context *context;
    struct ibv_device_attr device;
    struct ibv_port_attr port;
    union ibv_gid gid;

    /* Made by connect_as() and what it calls. */
    struct ibv_pd *pd;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    struct ibv_srq *srq;
    struct ibv_qp *qp;
    uint8_t *memory; /* MEMORY bytes; the first end's hold pattern(), the other's 0x55 */
    struct ibv_mr *mr;
    struct address peer;

    struct object objects[OBJECTS];
    unsigned object_count;
    bool other_ended;
    struct result *result;
    jmp_buf leave;
};

enum ends { SOLO, BOTH };

struct test {
    const char *file, *name;
    const char *statement; /* what must hold, one sentence */
    const char *source;    /* who says so: IBTA chapter, manual page */
    enum ends ends;        /* SOLO: only the first end runs it */
    void (*run)(struct end *e);
    struct test *next;
};

void test_register(struct test *test);

#define TEST(id, how, what, where)                                                                       \
    static void test_##id(struct end *e);                                                                \
    __attribute__((constructor)) static void register_##id(void)                                         \
    {                                                                                                    \
        static struct test test = {                                                                      \
            .file = __FILE__, .name = #id, .ends = how, .statement = what, .source = where,              \
            .run = test_##id};                                                                           \
        test_register(&test);                                                                            \
    }                                                                                                    \
    static void test_##id(struct end *e)

/* Ends the test of this end. */
void leave(struct end *e, enum outcome outcome, const char *file, int line, const char *format, ...)
    __attribute__((noreturn, format(printf, 5, 6)));

#define FAIL(...) leave(e, OUTCOME_FAILED, __FILE__, __LINE__, __VA_ARGS__)
#define SKIP(...) leave(e, OUTCOME_SKIPPED, __FILE__, __LINE__, __VA_ARGS__)
#define CHECK(condition)                     \
    do {                                     \
        if (!(condition))                    \
            FAIL("not so: %s", #condition);  \
    } while (0)
#define CHECK_THAT(condition, ...) \
    do {                           \
        if (!(condition))          \
            FAIL(__VA_ARGS__);     \
    } while (0)

/* Value and expectation, both integers. */
#define EQUAL(value, expected)                                                                  \
    do {                                                                                        \
        long long value_ = (long long)(value), expected_ = (long long)(expected);               \
        if (value_ != expected_)                                                                \
            FAIL("%s is %lld, not %lld", #value, value_, expected_);                            \
    } while (0)

/* Verbs give 0 or an errno, or a negative number with errno set. */
#define ERROR_OF(call)                         \
    ({                                         \
        int returned_ = (call);                \
        returned_ < 0 ? errno : returned_;     \
    })

/* A verb that must succeed. Lacking verbs skip the test. */
#define DO(call)                                                                                \
    do {                                                                                        \
        int error_ = ERROR_OF(call);                                                            \
        if (lacking(error_))                                                                    \
            SKIP("%s: %s", #call, strerror(error_));                                            \
        if (error_)                                                                             \
            FAIL("%s: %s", #call, strerror(error_));                                            \
    } while (0)

/* The same for one that must fail with this errno. */
#define REFUSED(call, expected)                                                                  \
    do {                                                                                         \
        int error_ = ERROR_OF(call);                                                             \
        if ((expected) != EOPNOTSUPP && lacking(error_))                                         \
            SKIP("%s: %s", #call, strerror(error_));                                             \
        if (error_ != (expected))                                                                \
            FAIL("%s: %s, not %s", #call, error_ ? strerror(error_) : "0", strerror(expected));  \
    } while (0)

/* The same for one that gives an object or NULL and errno. */
#define NO_OBJECT(call, expected)                                                                          \
    do {                                                                                                   \
        errno = 0;                                                                                         \
        if ((call) != NULL)                                                                                \
            FAIL("%s: an object, not %s", #call, strerror(expected));                                      \
        if ((expected) != EOPNOTSUPP && lacking(errno))                                                    \
            SKIP("%s: %s", #call, strerror(errno));                                                        \
        if (errno != (expected))                                                                           \
            FAIL("%s: %s, not %s", #call, strerror(errno), strerror(expected));                            \
    } while (0)

/* An object of a verb that gives NULL and errno; destroyed after the test. */
#define MADE(call, destroyer)                                                      \
    ({                                                                             \
        errno = 0;                                                                 \
        __typeof__(call) object_ = (call);                                         \
        if (!object_ && lacking(errno))                                            \
            SKIP("%s: %s", #call, strerror(errno));                                \
        if (!object_)                                                              \
            FAIL("%s: %s", #call, strerror(errno));                                \
        keep(e, object_, (int (*)(void *))(destroyer));                            \
        object_;                                                                   \
    })

/* EOPNOTSUPP and ENOSYS: the device doesn't have that verb. */
bool lacking(int error);

/* ---- objects (end.c) ---------------------------------------------------- */

/* Opens the device; closes it, with all that was kept. end_close: false where something could not be destroyed. */
void end_open(struct end *e);
bool end_close(struct end *e);

/* The object is destroyed after the test, before what was kept earlier. */
void keep(struct end *e, void *object, int (*destroy)(void *object));
/* Destroys a kept object now. Returns what its destroyer does. */
int drop(struct end *e, void *object);

/* How an end is to be connected. plan_of() gives what tests usually want; they change what matters to them. */
struct plan {
    enum ibv_qp_type type;
    uint32_t cqe, send_wr, recv_wr, sge, inline_data;
    bool all_signaled, notified; /* notified: the CQ has a channel */
    uint32_t srq_wr;             /* 0: no SRQ */
    unsigned mr_access, qp_access;
    uint8_t rnr_retry, retry_cnt, timeout, min_rnr_timer, rd_atomic;
    uint32_t qkey;
    uint64_t send_ops; /* for ibv_wr_*, or 0 */
};

struct plan plan_of(enum ibv_qp_type type);

/* PD, CQ (with channel, SRQ where planned) and registered memory. */
void set_up(struct end *e, const struct plan *plan);
/* One more QP of e's PD and CQ, in RESET. */
struct ibv_qp *create_qp(struct end *e, const struct plan *plan);
/* NULL and errno where it can't be created; the caller keeps it. */
struct ibv_qp *try_create_qp(struct end *e, const struct plan *plan);
/* The attributes of the usual transitions, and their masks. */
int to_init(struct end *e, struct ibv_qp *qp, const struct plan *plan);
int to_rtr(struct end *e, struct ibv_qp *qp, const struct plan *plan, const struct address *peer);
int to_rts(struct ibv_qp *qp, const struct plan *plan);
int to_state(struct ibv_qp *qp, enum ibv_qp_state state);
struct ibv_ah_attr path_to(const struct end *e, const union ibv_gid *gid);

/* All of the above: both ends call it and are connected, in RTS, when it returns. */
void connect_as(struct end *e, const struct plan *plan);
void connect_rc(struct end *e);
/* Connects one more QP in RESET to the other end's: both call it. Returns the other's address. */
struct address join(struct end *e, struct ibv_qp *qp, const struct plan *plan);
/* Two QPs of this very end connected to each other, for tests with one end. */
void join_here(struct end *e, struct ibv_qp *one, struct ibv_qp *other, const struct plan *plan);

struct ibv_mr *reg(struct end *e, void *addr, size_t length, int access);
/* Page-aligned anonymous memory; unmapped after the test. */
uint8_t *pages(struct end *e, size_t length);

static inline uint8_t pattern(uint64_t index)
{
    return (uint8_t)(index * 131 + (index >> 8) * 7 + 1);
}

/* ---- the other end (meet.c) ---------------------------------------------- */

void exchange(struct end *e, const void *mine, void *theirs, size_t size);
/* Both ends have come this far. */
void meet(struct end *e);
/* Throws where the other end has failed. Called while waiting. */
void look_after_other(struct end *e);
/* Tells the other end how the test ended here. */
void tell_end(int socket, const struct result *result);
/* Two invocations: tells the other one that this test's process is over. */
void tell_done(int socket, const struct result *result);
/* Drops what a test left unread, up to that word. False: the other one is gone. */
bool await_done(int socket, struct result *result);

/* ---- work (work.c) -------------------------------------------------------- */

/* A send WR over e->memory; whatever is 0 has the usual meaning. */
struct request {
    enum ibv_wr_opcode opcode;
    uint64_t wr_id;
    unsigned flags;   /* IBV_SEND_SIGNALED is added unless quiet */
    bool quiet;
    uint32_t from;    /* offset into e->memory */
    uint32_t length;
    uint32_t lkey;    /* 0: e->mr's */
    uint64_t to;      /* offset into the peer's memory */
    uint32_t rkey;    /* 0: the peer's */
    uint32_t imm;     /* host order; also the rkey to invalidate */
    uint64_t compare_add, swap;
    struct ibv_sge *sges; /* instead of from, length and lkey */
    int sge_count;
    bool empty; /* no SGE at all */
    struct ibv_ah *ah; /* UD */
    uint32_t qp_num, qkey;
    struct ibv_qp *qp; /* NULL: e->qp */
    uint32_t srq_num;  /* XRC */
};

int ask(struct end *e, struct request request);
#define ASK(...) DO(ask(e, (struct request){__VA_ARGS__}))

/* A receive into e->memory, on the QP or on its SRQ. */
int receive_on(struct end *e, struct ibv_qp *qp, uint64_t wr_id, uint32_t at, uint32_t length);
#define RECEIVE(wr_id, at, length) DO(receive_on(e, e->qp, wr_id, at, length))

/* The next completion; fails after the patience without one. */
struct ibv_wc next_wc(struct end *e, struct ibv_cq *cq);
/* It must have this wr_id and status. */
struct ibv_wc expect(struct end *e, struct ibv_cq *cq, uint64_t wr_id, enum ibv_wc_status status, const char *file,
                     int line);
#define EXPECT(wr_id, status) expect(e, e->cq, wr_id, status, __FILE__, __LINE__)
/* No completion is there. */
#define EXPECT_NOTHING()                                              \
    do {                                                              \
        struct ibv_wc none_;                                          \
        CHECK_THAT(ibv_poll_cq(e->cq, 1, &none_) == 0, "a completion of %llu that nothing explains", \
                   (unsigned long long)none_.wr_id);                  \
    } while (0)

enum ibv_qp_state state_of(struct end *e, struct ibv_qp *qp);
/* Waits until the QP is in this state (the device moves it). */
void await_state(struct end *e, struct ibv_qp *qp, enum ibv_qp_state state);

/* The next async event of this type, acknowledged; *element gets whom it concerns. Others before it are dropped. */
void await_event(struct end *e, enum ibv_event_type type, const void *element);
/* No such event comes: nothing is readable now. */
bool event_waits(struct end *e);

bool readable(int fd, int milliseconds);
/* Waits for a completion event and acknowledges it. */
void await_cq_event(struct end *e);

/* Bytes [at, at + length) of e->memory are what the first end's pattern has at `from`. */
#define ARRIVED(at, length, from)                                                                          \
    do {                                                                                                   \
        for (uint64_t i_ = 0; i_ < (uint64_t)(length); i_++)                                               \
            if (e->memory[(at) + i_] != pattern((from) + i_))                                              \
                FAIL("byte %llu is %u, not %u", (unsigned long long)((at) + i_), e->memory[(at) + i_],     \
                     pattern((from) + i_));                                                                \
    } while (0)
/* They are as they were. */
#define UNTOUCHED(at, length)                                                                     \
    do {                                                                                          \
        for (uint64_t i_ = 0; i_ < (uint64_t)(length); i_++)                                      \
            if (e->memory[(at) + i_] != 0x55)                                                     \
                FAIL("byte %llu was written", (unsigned long long)((at) + i_));                   \
    } while (0)

double now(void);

/* ---- deviations (deviations.c) --------------------------------------------- */

struct deviation {
    const char *device; /* start of the device's name */
    const char *test;   /* as --filter takes it */
    bool untried;       /* running it would do harm: a hung kernel thread, say */
    const char *reason;
};

/* The known deviation of this device from this test, or NULL. */
const struct deviation *deviation_of(const char *device, const char *test);

#endif
