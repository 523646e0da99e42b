/* SPDX-License-Identifier: Apache-2.0 */
/*
 * conformance: runs the tests of the registry, each in a process of its own, so
 * that one that crashes or hangs is one failure.
 *
 * The two ends are
 *   two threads of that process         (the default)
 *   two processes                       (--processes)
 *   two invocations, on any two nodes   (--listen PORT here, --connect HOST:PORT there)
 * Output is TAP: "ok 3 - qp_states.any_to_err", with "# SKIP reason" and
 * "# deviation: reason". The exit code is 1 where a test failed, 2 for usage.
 */
#include <fnmatch.h>
#include <getopt.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "suite.h"

enum {
    TEST_LIMIT = 6, /* a test may last that many times the patience */
    HASTE = 1,      /* seconds of patience with a known deviation */
    LATER = 3,      /* the patience of a second try, in that of the first */
    NAME = 128,
};

/* What the end that chooses says of the next test; no name: there is none. */
struct choice {
    char name[NAME];
    int32_t patience;
};

static struct test *first_test, **next_test = &first_test;

static struct {
    struct options options;
    bool processes, list, json, untried;
    int tries;
    const char *filters[32];
    int filter_count;
    const char *listen, *connect, *over;
} say = {.options = {.gid_index = -1, .patience = 10}, .tries = 1};

static struct result *results; /* of both ends, shared with the children */

void test_register(struct test *test)
{
    *next_test = test;
    next_test = &test->next;
}

static const char *full_name(const struct test *test, char *name)
{
    const char *file = strrchr(test->file, '/');

    file = file ? file + 1 : test->file;
    snprintf(name, NAME, "%.*s.%s", (int)strcspn(file, "."), file, test->name);
    return name;
}

static bool wanted(const char *name)
{
    for (int i = 0; i < say.filter_count; i++)
        if (fnmatch(say.filters[i], name, 0) == 0)
            return true;
    return say.filter_count == 0;
}

/* ---- one end ----------------------------------------------------------------- */

static void run_test(struct end *e, const struct test *test)
{
    end_open(e);
    test->run(e);
    e->result->outcome = OUTCOME_OK;
}

static void run_end(const struct test *test, bool first, int socket, struct result *result)
{
    struct end *e = calloc(1, sizeof(*e));

    *result = (struct result){.outcome = OUTCOME_NONE};
    if (!e)
        return;
    e->first = first;
    e->options = &say.options;
    e->socket = socket;
    e->result = result;
    if (test->ends == SOLO && !first)
        result->outcome = OUTCOME_OK;
    else if (!setjmp(e->leave))
        run_test(e, test);
    /* Before destroying: the other end may wait for us, and we for what it has. */
    tell_end(socket, result);
    if (test->ends == BOTH && result->outcome == OUTCOME_OK) {
        struct result theirs;

        /* Nobody destroys what the other still uses. */
        if (recv(socket, &theirs, 1, MSG_PEEK) != 1)
            *result = (struct result){OUTCOME_FAILED, "the other end is gone"};
    }
    if (!end_close(e) && result->outcome == OUTCOME_OK)
        *result = (struct result){OUTCOME_FAILED, "what the test made can't be destroyed"};
    free(e);
}

struct thread {
    const struct test *test;
    int socket;
};

static void *second_thread(void *argument)
{
    const struct thread *thread = argument;

    run_end(thread->test, false, thread->socket, &results[1]);
    return NULL;
}

static void run_both_here(const struct test *test, const int *sockets)
{
    struct thread other = {.test = test, .socket = sockets[1]};
    pthread_t thread;

    if (pthread_create(&thread, NULL, second_thread, &other))
        exit(1);
    run_end(test, true, sockets[0], &results[0]);
    pthread_join(thread, NULL);
}

/* ---- children ------------------------------------------------------------------ */

static pid_t spawn(const struct test *test, const int *sockets, int end)
{
    fflush(stdout);
    pid_t pid = fork();

    if (pid)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (end < 0) {
        run_both_here(test, sockets);
    } else {
        if (sockets[1] >= 0)
            close(sockets[1 - end]);
        run_end(test, end == 0, sockets[end], &results[end]);
    }
    /* Not exit(): what other threads and libraries hold goes with the process. */
    _exit(0);
}

static void await_child(pid_t pid, struct result *result)
{
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0), status;
    struct pollfd ended = {.fd = pidfd, .events = POLLIN};
    bool late = poll(&ended, 1, TEST_LIMIT * say.options.patience * 1000) == 0;

    if (late)
        kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    close(pidfd);
    if (!late && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return;
    result->outcome = OUTCOME_FAILED;
    if (late)
        snprintf(result->reason, REASON, "no end within %d s", TEST_LIMIT * say.options.patience);
    else if (WIFSIGNALED(status))
        snprintf(result->reason, REASON, "killed by signal %d", WTERMSIG(status));
    else
        snprintf(result->reason, REASON, "exit code %d", WEXITSTATUS(status));
}

/* Both ends on this machine. */
static void run_here(const struct test *test)
{
    int sockets[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets)) {
        perror("socketpair");
        exit(1);
    }
    if (!say.processes || test->ends == SOLO) {
        await_child(spawn(test, sockets, -1), &results[0]);
    } else {
        pid_t one = spawn(test, sockets, 0), other = spawn(test, sockets, 1);

        close(sockets[0]);
        close(sockets[1]);
        await_child(one, &results[0]);
        await_child(other, &results[1]);
        return;
    }
    close(sockets[0]);
    close(sockets[1]);
}

/* This end here, the other one elsewhere. */
static void run_apart(const struct test *test, bool first, int socket)
{
    int end = first ? 0 : 1;
    pid_t pid = fork();

    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        run_end(test, first, socket, &results[end]);
        _exit(0);
    }
    await_child(pid, &results[end]);
    tell_done(socket, &results[end]);
    if (!await_done(socket, &results[1 - end])) {
        fprintf(stderr, "conformance: the other end is gone\n");
        exit(1);
    }
}

/* ---- what is printed ------------------------------------------------------------- */

static struct {
    int run, ok, failed, skipped, deviating;
} counts;

static void print_json_string(const char *text)
{
    putchar('"');
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            putchar('\\');
        if ((unsigned char)*text < 0x20)
            printf("\\u%04x", *text);
        else
            putchar(*text);
    }
    putchar('"');
}

/* Of the two ends' results the one that says most. */
static const struct result *worst_result(void)
{
    /* The end that found it, not the one that was left alone. */
    if (results[1].outcome == OUTCOME_FAILED && strncmp(results[1].reason, "meet.c", 6) != 0 &&
        (results[0].outcome != OUTCOME_FAILED || strncmp(results[0].reason, "meet.c", 6) == 0))
        return &results[1];
    return &results[results[0].outcome == OUTCOME_OK];
}

static bool has_failed(const struct result *result)
{
    return result->outcome != OUTCOME_OK && result->outcome != OUTCOME_SKIPPED;
}

static void report(const struct test *test, const char *name, const struct deviation *deviation, int tries,
                   double seconds)
{
    const struct result *worst = worst_result();
    const char *outcome = "ok";

    counts.run++;
    if (worst->outcome == OUTCOME_OK)
        counts.ok++;
    else if (worst->outcome == OUTCOME_SKIPPED)
        outcome = "skip", counts.skipped++;
    else if (deviation)
        outcome = "deviation", counts.deviating++;
    else
        outcome = "failed", counts.failed++;
    if (say.json) {
        printf("%s{\"name\": ", counts.run > 1 ? ",\n  " : "  ");
        print_json_string(name);
        printf(", \"statement\": ");
        print_json_string(test->statement);
        printf(", \"source\": ");
        print_json_string(test->source);
        printf(", \"outcome\": \"%s\", \"tries\": %d, \"seconds\": %.3f, \"reason\": ", outcome, tries, seconds);
        print_json_string(worst->reason);
        if (deviation) {
            printf(", \"deviation\": ");
            print_json_string(deviation->reason);
        }
        printf("}");
    } else {
        printf("%s %d - %s", strcmp(outcome, "ok") == 0 || strcmp(outcome, "skip") == 0 ? "ok" : "not ok", counts.run,
               name);
        if (worst->outcome == OUTCOME_SKIPPED)
            printf(" # SKIP %s", worst->reason);
        else if (deviation)
            printf(" # deviation%s: %s", worst->outcome == OUTCOME_OK ? ", but not now" : "", deviation->reason);
        else if (tries > 1)
            printf(" # at try %d", tries);
        printf("\n");
        if (worst->outcome == OUTCOME_FAILED)
            printf("#   %s (%s)\n#   %s%s\n", test->statement, test->source, worst == &results[1] ? "the answering end: " : "",
                   worst->reason);
        if (worst->outcome == OUTCOME_NONE)
            printf("#   an end gave no result\n");
    }
    fflush(stdout);
}

/* Asked in a child: what this process opens is nothing that its children can use. */
static const char *device_name(void)
{
    static char name[REASON];

    if (say.options.device)
        return say.options.device;
    pid_t pid = fork();

    if (!pid) {
        struct ibv_device **list = ibv_get_device_list(NULL);

        if (!list || !list[0]) {
            fprintf(stderr, "conformance: no RDMA device: %s\n", strerror(errno));
            _exit(1);
        }
        snprintf(results[0].reason, REASON, "%s", ibv_get_device_name(list[0]));
        _exit(0);
    }
    int status;

    waitpid(pid, &status, 0);
    if (status)
        exit(1);
    snprintf(name, sizeof(name), "%s", results[0].reason);
    return name;
}

/* ---- the other node ---------------------------------------------------------------- */

static int meet_on(const char *port)
{
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)atoi(port))};
    int listener = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1, no = 0;

    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof(no));
    if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 1)) {
        fprintf(stderr, "conformance: port %s: %s\n", port, strerror(errno));
        exit(1);
    }
    int fd = accept(listener, NULL, NULL);

    close(listener);
    return fd;
}

static int meet_at(char *where)
{
    char *colon = strrchr(where, ':');
    struct addrinfo *found, hints = {.ai_socktype = SOCK_STREAM};

    if (!colon) {
        fprintf(stderr, "conformance: --connect takes HOST:PORT, not %s\n", where);
        exit(2);
    }
    *colon = 0;
    int error = getaddrinfo(where, colon + 1, &hints, &found);

    if (error) {
        fprintf(stderr, "conformance: %s: %s\n", where, gai_strerror(error));
        exit(1);
    }
    double deadline = now() + say.options.patience;
    int fd;

    /* The other end may come a little later. */
    for (;;) {
        fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (!connect(fd, found->ai_addr, found->ai_addrlen))
            break;
        close(fd);
        if (now() > deadline) {
            fprintf(stderr, "conformance: nobody listens at %s:%s\n", where, colon + 1);
            exit(1);
        }
        usleep(50000);
    }
    freeaddrinfo(found);
    return fd;
}

static int apart(void)
{
    int yes = 1, fd = say.listen ? meet_on(say.listen) : meet_at((char *)say.connect);

    if (fd < 0) {
        perror("conformance");
        exit(1);
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
    return fd;
}

/* The end that doesn't choose: runs what it is told, until it is told nothing. */
static int follow(int socket)
{
    struct choice choice;
    char name[NAME];

    for (;;) {
        if (recv(socket, &choice, sizeof(choice), MSG_WAITALL) != sizeof(choice)) {
            fprintf(stderr, "conformance: the other end is gone\n");
            return 1;
        }
        choice.name[NAME - 1] = 0;
        if (!choice.name[0])
            return 0;
        struct test *test = first_test;

        while (test && strcmp(full_name(test, name), choice.name) != 0)
            test = test->next;
        if (!test) {
            fprintf(stderr, "conformance: the other end has a test that this one hasn't: %s\n", choice.name);
            return 1;
        }
        say.options.patience = choice.patience;
        run_apart(test, false, socket);
    }
}

/* ---- command line ------------------------------------------------------------------- */

static void usage(void)
{
    fputs("usage: conformance [--device NAME] [--gid-index N] [--patience SECONDS] [--filter PATTERN]... [--json]\n"
          "                   [--processes | --listen PORT | --connect HOST:PORT] [--untried]\n"
          "                   [--over DEVICE] [--tries N]\n"
          "       conformance --list\n"
          "\n"
          "  --filter      shell pattern of names, as 'qp_states.*'; several are alternatives\n"
          "  --processes   the two ends are two processes, not two threads of one\n"
          "  --listen      wait for the other end, which runs on another node or as another tenant\n"
          "  --connect     be the other end: it runs what the first one asks for, with the first one's patience\n"
          "  --over        what this device hands everything to: that one's known deviations are its own\n"
          "  --tries       how often a test may fail, each time with more patience, before it counts as failed\n"
          "  --untried     run also what is known to harm this device\n",
          stderr);
    exit(2);
}

static void parse(int argc, char **argv)
{
    static const struct option options[] = {
        {"device", required_argument, NULL, 'd'},  {"gid-index", required_argument, NULL, 'g'},
        {"patience", required_argument, NULL, 'p'}, {"filter", required_argument, NULL, 'f'},
        {"json", no_argument, NULL, 'j'},          {"list", no_argument, NULL, 'l'},
        {"processes", no_argument, NULL, '2'},     {"listen", required_argument, NULL, 'L'},
        {"connect", required_argument, NULL, 'C'}, {"untried", no_argument, NULL, 'u'},
        {"over", required_argument, NULL, 'o'},    {"tries", required_argument, NULL, 't'},
        {NULL, 0, NULL, 0},
    };
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'd': say.options.device = optarg; break;
        case 'g': say.options.gid_index = atoi(optarg); break;
        case 'p': say.options.patience = atoi(optarg); break;
        case 'j': say.json = true; break;
        case 'l': say.list = true; break;
        case '2': say.processes = true; break;
        case 'L': say.listen = optarg; break;
        case 'C': say.connect = optarg; break;
        case 'o': say.over = optarg; break;
        case 'u': say.untried = true; break;
        case 't': say.tries = atoi(optarg); break;
        case 'f':
            if (say.filter_count == sizeof(say.filters) / sizeof(*say.filters))
                usage();
            say.filters[say.filter_count++] = optarg;
            break;
        default: usage();
        }
    }
    if (optind != argc || say.options.patience < 1 || say.tries < 1 || say.processes + !!say.listen + !!say.connect > 1)
        usage();
}

static int list_tests(void)
{
    char name[NAME];

    for (struct test *test = first_test; test; test = test->next)
        if (wanted(full_name(test, name)))
            printf("%-44s %s (%s)\n", name, test->statement, test->source);
    return 0;
}

static bool choose(int socket, const char *name)
{
    struct choice choice = {.patience = say.options.patience};

    snprintf(choice.name, NAME, "%s", name);
    return send(socket, &choice, sizeof(choice), MSG_NOSIGNAL) == sizeof(choice);
}

static void run(const struct test *test, const char *name, const struct deviation *deviation, int socket)
{
    memset(results, 0, 2 * sizeof(*results));
    if (deviation && deviation->untried && !say.untried) {
        results[0] = results[1] = (struct result){OUTCOME_SKIPPED, ""};
        snprintf(results[0].reason, REASON, "deviation: %s", deviation->reason);
    } else if (socket >= 0) {
        if (!choose(socket, name)) {
            fprintf(stderr, "conformance: the other end is gone\n");
            exit(1);
        }
        run_apart(test, true, socket);
    } else {
        run_here(test);
    }
}

int main(int argc, char **argv)
{
    char name[NAME] = "";
    int socket = -1;

    parse(argc, argv);
    if (say.list)
        return list_tests();
    signal(SIGPIPE, SIG_IGN);
    results = mmap(NULL, 2 * sizeof(*results), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (results == MAP_FAILED) {
        perror("conformance");
        return 1;
    }
    if (say.listen || say.connect)
        socket = apart();
    if (say.connect)
        return follow(socket);

    const char *on = device_name();
    const int patience = say.options.patience;

    if (say.json)
        printf("{\"device\": \"%s\", \"tests\": [\n", on);
    for (struct test *test = first_test; test; test = test->next) {
        if (!wanted(full_name(test, name)))
            continue;
        const struct deviation *deviation = deviation_of(say.over ? say.over : on, name);
        double start = now();
        int tries = 0;

        /* What is known to fail isn't waited for long. */
        say.options.patience = deviation && patience > HASTE ? HASTE : patience;
        do {
            if (tries++) {
                fprintf(stderr, "conformance: %s: try %d: %s\n", name, tries - 1, worst_result()->reason);
                say.options.patience = LATER * patience;
            }
            run(test, name, deviation, socket);
        } while (!deviation && has_failed(worst_result()) && tries < say.tries);
        report(test, name, deviation, tries, now() - start);
    }
    if (socket >= 0 && !choose(socket, ""))
        return 1;
    if (say.json)
        printf("\n], \"ok\": %d, \"failed\": %d, \"skipped\": %d, \"deviating\": %d}\n", counts.ok, counts.failed,
               counts.skipped, counts.deviating);
    else
        printf("1..%d\n# %s: %d ok, %d failed, %d skipped, %d known deviations\n", counts.run, on, counts.ok,
               counts.failed, counts.skipped, counts.deviating);
    return counts.failed ? 1 : 0;
}
