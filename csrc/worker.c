/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "atomic.h"
#include "clock.h"
#include "device.h"
#include "futex.h"
#include "net.h"
#include "nic.h"
#include "qp.h"
#include "reach.h"
#include "session.h"
#include "tenant.h"
#include "turn.h"

#ifdef __SANITIZE_THREAD__
uint32_t sluice_fence_word;
#endif

/* How long an empty queue is watched where a core is free: longer than an application takes to answer. */
#define LINGER_NS 50000ull
/* The same after a command of a mailbox: who registers memory often registers more, and copies it in between. */
#define COMMAND_LINGER_NS 200000ull
/* How long to look for an answer before sleeping, whoever waits for the core. */
#define ANSWER_NS 1000ull
/* After so many times in vain, an answer is looked for every so many times only. */
enum { HOPE = 8, HOPELESS = 32 };
/* The kernel's least (sched(7)). */
#define SLICE_NS 100000ull
/* SCHED_FLAG_RESET_ON_FORK of linux/sched.h, which glibc's may not be included beside. */
enum { RESET_ON_FORK = 1 };
/* A third of an application's part of a core, where there is none to spare (sched(7)). */
enum { CONTROL_NICE = 5 };
/*
 * The worker's, while it sleeps between small messages: nine times an application's part, of which it takes little. More
 * than so many percent of a core, and it is too much: what it takes is an application's.
 */
enum { PROMPT_NICE = -10, PROMPT_PERCENT = 75 };
/*
 * Turns take this many times as long as looking at all doorbells does. A look that took longer than so many loads from
 * memory found something, or had to leave its core meanwhile: no reason to let who rings next wait 16 times that.
 */
enum { LOOK_SHARE = 16, LOOK_NS = 200, LOOK_ONE_NS = 40 };
/* How often to ask whether a core is free, */
#define CORES_NS 5000000ull
/* and how many there are, which takes three times as long and hardly ever changes. */
#define ONLINE_NS NS_PER_SECOND
/* How often to judge who moves much: it is a look at every session's tenant. */
#define BULK_NS 20000000ull
/* That is much: a byte in so many nanoseconds (200 MB/s), which no flood of small messages gets to. */
enum { BULK_NS_A_BYTE = 5 };

/* What was done since the last look for an answer: nothing was delivered; something was, of who rang on the worker's core, or elsewhere. */
enum whose { NOTHING, WHO_IS_HERE, WHO_IS_ELSEWHERE, WHOSE };

enum cores { CORES_UNKNOWN, CORES_FREE, CORES_SCARCE };

struct worker {
    pthread_t thread;
    pthread_mutex_t lock; /* held by the worker while it works */
    uint32_t wanted;      /* how many want to enter */
    uint32_t stopping;
    int loadavg;          /* /proc/loadavg, or -1 */
    uint64_t cores_asked; /* ns */
    enum cores cores;     /* as counted */
    uint64_t counted;     /* ns: when that was */
    unsigned online;      /* cores of the machine's, */
    uint64_t online_asked; /* ns: as of then */
    uint64_t bulk_judged; /* ns */
    bool crowded;         /* at some time since then */
    uint32_t giving_way;  /* sessions */
    uint32_t hope[WHOSE];  /* whether looking for an answer was worth it of late */
    uint32_t rang;        /* where who rang last did, as struct sluice_segment has it */
    uint32_t chances;     /* to look, of those that were without hope */
    int pinned;           /* the core that it keeps to, or -1 */
    int shunned;          /* the core that it keeps away from, or -1 */
    cpu_set_t allowed;    /* where it may run when it does neither, */
    cpu_set_t kept;       /* and where it may now */
    int caller;           /* the core from which it was rung since `placed`; or one of the following */
    uint64_t placed;      /* ns: when it was last judged where it should run */
    uint64_t used;        /* ns: the processor's time that it had had by then */
    bool prompt;          /* it has PROMPT_NICE; unprompted is what it had before */
    bool prompt_refused;
    int unprompted;
};

/* Instead of the number of a core. */
enum { NOBODY = -1, SEVERAL = -2 };

/*
 * Where a core is free, the worker keeps to the one that it has. A virtual machine's
 * kernel takes a halted core for one that its host has preempted (available_idle_cpu)
 * and wakes the worker on the core of whoever rang, which then runs in turns with it.
 */
static void keep_core(struct worker *worker)
{
    int core = sched_getcpu();

    if (core < 0 || core == worker->pinned)
        return;
    if (worker->pinned < 0 && sched_getaffinity(0, sizeof(worker->allowed), &worker->allowed))
        return;
    CPU_ZERO(&worker->kept);
    CPU_SET(core, &worker->kept);
    if (sched_setaffinity(0, sizeof(worker->kept), &worker->kept) == 0)
        worker->pinned = core;
}

static void leave_core(struct worker *worker)
{
    cpu_set_t now, both;

    if (worker->pinned < 0 && worker->shunned < 0)
        return;
    /* Somebody else may have moved it meanwhile (taskset): that holds. Not where a cpuset took some of the cores away. */
    if (sched_getaffinity(0, sizeof(now), &now) == 0) {
        CPU_AND(&both, &now, &worker->kept);
        if (CPU_EQUAL(&both, &now))
            sched_setaffinity(0, sizeof(worker->allowed), &worker->allowed);
    }
    worker->pinned = worker->shunned = -1;
}

static void shun_core(struct worker *worker, int core)
{
    if (core == worker->shunned)
        return;
    leave_core(worker);
    if (sched_getaffinity(0, sizeof(worker->allowed), &worker->allowed) || !CPU_ISSET(core, &worker->allowed))
        return;
    worker->kept = worker->allowed;
    CPU_CLR(core, &worker->kept);
    if (CPU_COUNT(&worker->kept) && sched_setaffinity(0, sizeof(worker->kept), &worker->kept) == 0)
        worker->shunned = core;
}

static void be_prompt(struct worker *worker, bool prompt)
{
    if (prompt == worker->prompt || worker->prompt_refused)
        return;
    if (prompt)
        worker->unprompted = getpriority(PRIO_PROCESS, 0);
    int nice = worker->unprompted + (prompt ? PROMPT_NICE : 0);

    /* Of this thread alone. Not everybody may (CAP_SYS_NICE). */
    if (setpriority(PRIO_PROCESS, 0, nice))
        worker->prompt_refused = true;
    else
        worker->prompt = prompt;
}

/*
 * Where threads are more than cores, an application that moves much and spins for its completions keeps a core from
 * the worker that brings them: it is told to give way. Not who moves little: giving way costs it a time slice, and that
 * is the latency it spins for.
 */
static void judge_bulk(struct sluice_engine *engine, bool crowded)
{
    struct worker *worker = engine->worker;
    uint64_t passed = engine->now - worker->bulk_judged;

    /* Who sleeps between two pieces is not counted each time. */
    worker->crowded |= crowded;
    if (passed < BULK_NS || (!worker->crowded && worker->giving_way == 0))
        return;
    crowded = worker->crowded;
    worker->bulk_judged = engine->now;
    worker->crowded = false;
    worker->giving_way = 0;
    for (uint32_t i = 0; i < engine->live_count; i++) {
        struct session *session = engine->live[i];
        const struct sluice_tenant_counters *counters = session->tenant->counters;
        uint64_t moved = counters->tx_bytes + counters->rx_bytes;
        bool gives_way = crowded && moved - session->moved >= passed / BULK_NS_A_BYTE;

        uint32_t *told = &((struct sluice_segment *)session->segment.base)->give_way;

        session->moved = moved;
        worker->giving_way += gives_way;
        /* The line is that of the doorbell: written where it says something else only. */
        if (load_relaxed(told) != gives_way)
            store_relaxed(told, gives_way);
    }
}

static unsigned online(struct worker *worker, uint64_t now)
{
    if (worker->online == 0 || now - worker->online_asked >= ONLINE_NS) {
        worker->online = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
        worker->online_asked = now;
    }
    return worker->online;
}

/* The kernel says how many threads run or want to: the fourth field of /proc/loadavg. */
static enum cores count(struct worker *worker, uint64_t now)
{
    char text[128];
    unsigned running;
    ssize_t length = worker->loadavg < 0 ? -1 : pread(worker->loadavg, text, sizeof(text) - 1, 0);

    if (length <= 0)
        return CORES_UNKNOWN;
    text[length] = 0;
    if (sscanf(text, "%*s %*s %*s %u/", &running) != 1)
        return CORES_UNKNOWN;
    return running <= online(worker, now) ? CORES_FREE : CORES_SCARCE;
}

/* Whoever asks while the worker is awake and who asks before it sleeps have one answer. */
static enum cores count_cores(const struct sluice_engine *engine)
{
    struct worker *worker = engine->worker;

    if (engine->now - worker->counted >= CORES_NS) {
        worker->cores = count(worker, engine->now);
        worker->counted = engine->now;
    }
    return worker->cores;
}

/*
 * Where cores are scarce, and the worker carries for a NIC in software what an application without Sluice would while it
 * posts: what spins would take half of that time, and a kernel that is fair to all gives who gives way his part all the same
 * (CFS, before Linux 6.6).
 */
static bool carries(const struct sluice_engine *engine)
{
    return engine->linger == 0 && nic_carries(engine);
}

/* It has had work for all of this time, or bytes move: then it is no more than anybody else. */
static void judge_place(const struct sluice_engine *engine)
{
    struct worker *worker = engine->worker;

    if (!worker->giving_way && engine->now - worker->placed < 2 * CORES_NS)
        return;
    be_prompt(worker, carries(engine));
    if (worker->shunned >= 0)
        leave_core(worker);
}

/*
 * Spinning pays where a core is free and costs a time slice where applications
 * spin on all of them (on two cores, 5 us against 8 ms).
 */
static void ask_for_cores(struct sluice_engine *engine)
{
    struct worker *worker = engine->worker;
    cpu_set_t cpus;

    if (engine->now - worker->cores_asked < CORES_NS)
        return;
    worker->cores_asked = engine->now;
    engine->linger = 0;
    /* Free to move, until it sleeps again. */
    if (worker->pinned >= 0)
        leave_core(worker);
    enum cores cores = count_cores(engine);

    if (cores == CORES_UNKNOWN || sched_getaffinity(0, sizeof(cpus), &cpus))
        return;
    /* Where there is but one that it may have, it can't spin there. */
    if ((CPU_COUNT(&cpus) > 1 || worker->shunned >= 0) && cores == CORES_FREE)
        engine->linger = LINGER_NS;
    judge_bulk(engine, engine->linger == 0);
    judge_place(engine);
}

/* Whether it has had but little of a core in the last so many nanoseconds. */
static bool takes_little(struct worker *worker, uint64_t passed)
{
    struct timespec time;
    uint64_t before = worker->used;

    if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time))
        return false;
    worker->used = (uint64_t)time.tv_sec * NS_PER_SECOND + (uint64_t)time.tv_nsec;
    return (worker->used - before) * 100 < passed * PROMPT_PERCENT;
}

/*
 * Where threads are more than cores, and small messages go to and fro, the worker comes before applications at once, not
 * only until it has had its part of the core, after which the kernel would let them spin until the next tick: it sleeps
 * most of the time. Not where bytes move: its wake-ups would then cut those pieces short that an application, or another
 * node's worker, is about to move. Nor for commands, which take long.
 *
 * Between nodes it is best on another core than the application that rings: that one spins for what the worker brings, and
 * sees it while the worker still goes to sleep. Not within a node, whose applications take turns with one worker on
 * both their cores: there who is on the other core answers while the worker still looks for it.
 */
static void find_place(struct sluice_engine *engine)
{
    struct worker *worker = engine->worker;
    int caller = worker->caller;
    uint64_t passed = engine->now - worker->placed;

    if (passed < CORES_NS)
        return;
    worker->placed = engine->now;
    worker->caller = NOBODY;
    bool little = takes_little(worker, passed);
    bool small = caller != NOBODY && !worker->giving_way && engine->now - engine->commanded >= CORES_NS;
    bool scarce = small && engine->linger == 0 && count_cores(engine) == CORES_SCARCE;

    be_prompt(worker, (scarce && little) || carries(engine));
    if (scarce && caller >= 0 && engine->now - engine->net->served < CORES_NS)
        shun_core(worker, caller);
    else if (worker->shunned >= 0)
        leave_core(worker);
}

/* For who finds it on its way to sleep (shim/session.c). A line that all read: written where it says something else only. */
static void note_core(struct sluice_engine_page *page)
{
    uint32_t core = (uint32_t)(sched_getcpu() + 1);

    if (load_relaxed(&page->core) != core)
        store_relaxed(&page->core, core);
}

static void note_caller(struct worker *worker, const struct session *session)
{
    /* As its process says, once read. */
    uint32_t core = load_relaxed(&((const struct sluice_segment *)session->segment.base)->core);

    worker->rang = core;
    if (core == 0 || core > CPU_SETSIZE || worker->caller == (int)core - 1)
        return;
    worker->caller = worker->caller == NOBODY ? (int)core - 1 : SEVERAL;
}

/* Doorbells, and send queues that are watched. */
static void look_around(struct sluice_engine *engine)
{
    struct list round;

    if (port_rung(engine))
        port_collect(engine);
    for (uint32_t i = 0; i < engine->live_count; i++)
        if (session_rung(engine->live[i])) {
            note_caller(engine->worker, engine->live[i]);
            session_poll(engine->live[i]);
        }
    if (list_empty(&engine->watched))
        return;
    list_init(&round);
    list_splice(&round, &engine->watched);
    while (!list_empty(&round)) {
        struct qp *qp = list_entry(list_take(&round), struct qp, link);

        list_append(&engine->watched, &qp->link);
        qp_watch(qp);
    }
}

/*
 * Turns, until it is time to look around again: soon, where that is quick, and
 * where there are a thousand sessions to look at, when it will cost no more than a
 * part of what was done since. False: there is none to take.
 */
static bool serve(struct sluice_engine *engine, uint64_t looked_ns)
{
    uint64_t most = LOOK_NS + (uint64_t)LOOK_ONE_NS * engine->live_count;
    uint64_t enough = engine->now + LOOK_SHARE * (looked_ns < most ? looked_ns : most);

    do {
        if (!turn_take(engine))
            return false;
        cq_notify_all(engine);
        timers_run(&engine->timers, engine->now);
    } while (engine->now < enough && !load_relaxed(&engine->worker->wanted));
    return true;
}

static bool rung(const struct sluice_engine *engine)
{
    for (uint32_t i = 0; i < engine->live_count; i++)
        if (session_rung(engine->live[i]))
            return true;
    return port_rung(engine) || nic_rung(engine);
}

bool worker_called(const struct sluice_engine *engine)
{
    return load_relaxed(&engine->worker->wanted) || devices_working(engine) > 1 || !list_empty(&engine->net->ready) ||
           rung(engine) ||
           (engine->timers.count && clock_now() >= timers_next(&engine->timers));
}

/*
 * An answer to what was just delivered is often posted within a microsecond, by an
 * application that runs on the other core: shorter to look for it than to fall
 * asleep and be woken. One that waits for this core can't answer, and what only went out to
 * another node has no answer yet: then the look is a microsecond lost to whoever is next here. Of two on two
 * cores who write to each other, the one on the worker's has an answer at once, the other hasn't.
 * Where none comes, engine->now is that now.
 */
static bool answer_comes(struct sluice_engine *engine)
{
    struct worker *worker = engine->worker;
    enum whose whose = WHO_IS_ELSEWHERE;

    if (!engine->delivered)
        whose = NOTHING;
    else if (worker->rang == (uint32_t)sched_getcpu() + 1)
        whose = WHO_IS_HERE;
    uint32_t *hope = &worker->hope[whose];

    engine->delivered = false;
    if (rung(engine) || load_relaxed(&worker->wanted))
        return true;
    engine->now = clock_now();
    if (*hope == 0 && ++worker->chances % HOPELESS)
        return false;
    for (uint64_t end = engine->now + ANSWER_NS; engine->now < end; engine->now = clock_now()) {
        if (rung(engine) || load_relaxed(&worker->wanted)) {
            *hope = HOPE;
            return true;
        }
        spin_hint();
    }
    if (*hope)
        --*hope;
    return false;
}

/* Whether another command is worth waiting for awake, on a core that nobody else wants. */
static bool awaits_command(struct sluice_engine *engine)
{
    if (engine->now - engine->commanded >= COMMAND_LINGER_NS)
        return false;
    ask_for_cores(engine);
    return engine->linger != 0;
}

/*
 * Sleeps until someone rings, a timer is due, or the control plane has changed
 * something. Returns for how long, in nanoseconds: then engine->now is that now.
 */
static uint64_t park(struct sluice_engine *engine)
{
    struct worker *worker = engine->worker;
    uint64_t deadline = timers_next(&engine->timers);

    uint64_t slept = 0;

    if (answer_comes(engine)) {
        judge_place(engine);
        return 0;
    }
    if (worker->giving_way)
        ask_for_cores(engine);
    find_place(engine);
    note_core(engine->page);
    exchange(&engine->page->parked, 1);
    /* Pairs with the fence of whoever rings: he sees that we sleep, or we see that he rang. */
    full_fence();
    if (!rung(engine) && !load_relaxed(&worker->stopping) && !load_relaxed(&worker->wanted)) {
        uint64_t start = engine->now;

        engine->header->worker_parks++;
        if (engine->linger && worker->shunned < 0)
            keep_core(worker);
        bool naps = net_prepare(engine, &engine->page->parked);

        if (!naps && !nic_arm(engine)) {
            store_relaxed(&engine->page->parked, 0);
            return 0;
        }

        pthread_mutex_unlock(&worker->lock);
        bool descriptor = net_sleep(engine, &engine->page->parked, 1, deadline, naps);
        pthread_mutex_lock(&worker->lock);
        engine->now = clock_now();
        slept = engine->now - start;
        if (descriptor)
            nic_woken(engine);
    }
    store_relaxed(&engine->page->parked, 0);
    return slept;
}

/*
 * A short slice for the calling thread: woken, it comes before an application that
 * spins (EEVDF's PREEMPT_SHORT, Linux 6.12), instead of after that one's own slice of
 * some milliseconds. It takes nothing from anybody in the long run. Older kernels
 * ignore it. Threads that it makes have nothing of it, nor of its nice value.
 */
static void ask_for_short_slice(int nice)
{
    struct {
        uint32_t size, sched_policy;
        uint64_t sched_flags;
        int32_t sched_nice;
        uint32_t sched_priority;
        uint64_t sched_runtime, sched_deadline, sched_period;
    } attr = {.size = sizeof(attr), .sched_flags = RESET_ON_FORK, .sched_nice = nice, .sched_runtime = SLICE_NS};

    syscall(SYS_sched_setattr, 0, &attr, 0);
}

void sluice_engine_yield_cores(void)
{
    ask_for_short_slice(getpriority(PRIO_PROCESS, 0) + CONTROL_NICE);
}

static void *work(void *argument)
{
    struct sluice_engine *engine = argument;
    struct worker *worker = engine->worker;

    pthread_setname_np(pthread_self(), "sluice-worker");
    /* The default slack of 50 us would make every rate uneven. */
    prctl(PR_SET_TIMERSLACK, 1);
    ask_for_short_slice(getpriority(PRIO_PROCESS, 0));
    pthread_mutex_lock(&worker->lock);
    uint64_t counted = clock_now(), slept = 0;

    while (!load_relaxed(&worker->stopping)) {
        if (load_relaxed(&worker->wanted)) {
            pthread_mutex_unlock(&worker->lock);
            while (load_relaxed(&worker->wanted))
                sched_yield();
            pthread_mutex_lock(&worker->lock);
            slept = 0;
        }
        uint64_t start = slept ? engine->now : clock_now();

        engine->header->worker_loops++;
        engine->header->worker_busy_ns += start - counted;
        counted = engine->now = start;
        timers_run(&engine->timers, start);
        tenants_settle(engine);
        look_around(engine);
        net_serve(engine);
        nic_serve(engine);
        bool more = false;

        /* What comes now has its time counted from here on. */
        if (devices_working(engine) || !list_empty(&engine->notify)) {
            engine->now = clock_now();
            more = serve(engine, engine->now - start);
            cq_notify_all(engine);
        }
        slept = 0;
        if (more || nic_serve_sends(engine) || nic_lingers(engine) || !list_empty(&engine->watched) || !list_empty(&engine->net->ready))
            ask_for_cores(engine);
        else if (awaits_command(engine))
            sched_yield();
        else
            counted += slept = park(engine);
    }
    pthread_mutex_unlock(&worker->lock);
    return NULL;
}

void worker_ring(struct sluice_engine_page *page, uint32_t *word)
{
    exchange(word, 1);
    worker_wake(page);
}

void worker_wake(struct sluice_engine_page *page)
{
    /* Pairs with the one in park(). */
    full_fence();
    if (!load_relaxed(&page->parked))
        return;
    /* Cleared first, so that a worker which is only about to sleep doesn't. */
    exchange(&page->parked, 0);
    futex_wake(&page->parked);
}

int worker_spawn(void *(*run)(void *argument), void *argument)
{
    pthread_attr_t attributes;
    pthread_t thread;
    sigset_t all, before;

    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&thread, &attributes, run, argument);

    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return error;
}

int worker_start(struct sluice_engine *engine)
{
    struct worker *worker = calloc(1, sizeof(*worker));
    sigset_t all, before;

    if (!worker)
        return -ENOMEM;
    engine->worker = worker;
    worker->pinned = worker->shunned = -1;
    worker->caller = NOBODY;
    for (int i = 0; i < WHOSE; i++)
        worker->hope[i] = HOPE;
    worker->loadavg = open("/proc/loadavg", O_RDONLY | O_CLOEXEC);
    pthread_mutex_init(&worker->lock, NULL);
    /* Signals are the control plane's; but SIGBUS comes to who caused it (window.c). */
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGSEGV);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&worker->thread, NULL, work, engine);

    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) {
        close(worker->loadavg);
        free(worker);
        engine->worker = NULL;
    }
    return -error;
}

void worker_stop(struct sluice_engine *engine)
{
    struct worker *worker = engine->worker;

    if (!worker)
        return;
    exchange(&worker->stopping, 1);
    exchange(&engine->page->parked, 0);
    futex_wake(&engine->page->parked);
    pthread_join(worker->thread, NULL);
    if (worker->loadavg >= 0)
        close(worker->loadavg);
    pthread_mutex_destroy(&worker->lock);
    free(worker);
    engine->worker = NULL;
}

void worker_enter(struct sluice_engine *engine)
{
    struct worker *worker = engine->worker;

    __atomic_fetch_add(&worker->wanted, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_lock(&worker->lock);
    __atomic_fetch_sub(&worker->wanted, 1, __ATOMIC_SEQ_CST);
    engine->now = clock_now();
}

void worker_leave(struct sluice_engine *engine)
{
    /* Where it sleeps it has something to look at: timers that are nearer, QPs that may send, a NIC's new CQ. */
    bool wake = load_relaxed(&engine->page->parked) &&
                (devices_working(engine) || !list_empty(&engine->net->ready) || !list_empty(&engine->notify) ||
                 engine->timers.count || nic_unarmed(engine));

    /* Cleared first, so that a worker which is only about to sleep doesn't. */
    if (wake)
        exchange(&engine->page->parked, 0);
    pthread_mutex_unlock(&engine->worker->lock);
    if (wake)
        futex_wake(&engine->page->parked);
}

void worker_leave_for(struct sluice_engine *engine, struct tenant *tenant)
{
    uint64_t start = engine->now;

    engine->now = clock_now();
    tenant_charge_time(tenant, engine->now - start);
    worker_leave(engine);
}
