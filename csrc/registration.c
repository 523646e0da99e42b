/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "registration.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "atomic.h"
#include "nic.h"
#include "session.h"
#include "tenant.h"
#include "worker.h"

/* ---- pinning ---------------------------------------------------------------- */

/*
 * Whether there are pages wherever the range is. Its process has touched them (shim/mr.c), and was charged
 * for them; those that pinning would make were the router's.
 */
static bool is_there(const struct pin *pin)
{
    off_t hole = lseek(pin->fd, (off_t)pin->address, SEEK_HOLE);

    return hole >= 0 && (uint64_t)hole >= pin->address + pin->length;
}

/* Its pages stay with the NIC; the mapping is needed only to name them. */
int registration_pin(const struct pin *pin, struct ibv_mr **twin)
{
    struct stat status;

    if (fstat(pin->fd, &status))
        return -errno;
    if (!is_there(pin))
        return -EFAULT;
    /* In whole pages of the file system's. */
    uint64_t page = status.st_blksize > 4096 ? (uint64_t)status.st_blksize : 4096;
    uint64_t start = pin->address & ~(page - 1), end = (pin->address + pin->length + page - 1) & ~(page - 1);
    uint8_t *map = mmap(NULL, end - start, pin->read_only ? PROT_READ : PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_NORESERVE, pin->fd, (off_t)start);

    if (map == MAP_FAILED)
        return -errno;
    errno = 0;
    *twin = pin->nic->call.ibv_reg_mr_iova2(pin->pd, map + (pin->address - start), pin->length, pin->iova, pin->access);
    int error = *twin ? 0 : errno ? -errno : -ENOMEM;

    munmap(map, end - start);
    return error;
}

/* ---- threads ---------------------------------------------------------------- */

void registrar_open(struct registrar *registrar, struct sluice_engine *engine)
{
    pthread_mutex_init(&registrar->lock, NULL);
    pthread_cond_init(&registrar->changed, NULL);
    list_init(&registrar->done);
    list_init(&registrar->waiting);
    registrar->page = engine->page;
}

static void *work(void *argument)
{
    struct registration *one = argument;
    struct registrar *registrar = &one->pin.nic->registrar;

    pthread_setname_np(pthread_self(), "sluice-register");
    one->error = registration_pin(&one->pin, &one->twin);
    close(one->pin.fd);
    pthread_mutex_lock(&registrar->lock);
    list_append(&registrar->done, &one->link);
    worker_ring(registrar->page, &registrar->rung);
    registrar->running--;
    pthread_cond_signal(&registrar->changed);
    pthread_mutex_unlock(&registrar->lock);
    return NULL;
}

static int start(struct registration *one)
{
    struct registrar *registrar = &one->pin.nic->registrar;

    pthread_mutex_lock(&registrar->lock);
    registrar->running++;
    pthread_mutex_unlock(&registrar->lock);
    int error = worker_spawn(work, one);

    if (error) {
        pthread_mutex_lock(&registrar->lock);
        registrar->running--;
        pthread_mutex_unlock(&registrar->lock);
    }
    return -error;
}

/* ---- what is done ----------------------------------------------------------- */

static int settle(struct mr *mr, struct pd *pd, const struct mr *before, struct ibv_mr *twin, int error)
{
    if (!error)
        error = nic_adopt_mr(mr, twin);
    if (error && before)
        mr_put_back(mr, before);
    else if (error)
        mr_free(pd->session->engine, mr);
    else if (before)
        mr_move(mr, pd);
    return error;
}

/* What it keeps from being destroyed meanwhile, by 1 or -1: the PD, and the memory to which the region may go back. */
static void use_objects(struct registration *one, int by)
{
    one->pd->users += (uint32_t)by;
    if (one->again)
        one->before.memory->users += (uint32_t)by;
}

static void answer(struct registration *one)
{
    struct session *session = one->session;

    session->registration = NULL;
    int error = settle(one->mr, one->pd, one->again ? &one->before : NULL, one->twin, one->error);

    use_objects(one, -1);
    one->command.status = -error;
    one->command.key = error ? 0 : one->mr->key;
    if (one->again && !error && (one->before.access & MR_BY_PROCESS))
        session_answer_fenced(session, &one->command);
    else
        session_answer(session, &one->command);
}

static void finish(struct registration *one)
{
    struct nic *nic = one->pin.nic;

    if (one->session) {
        one->tenant->registrations--;
        answer(one);
    } else {
        if (one->twin)
            nic->call.ibv_dereg_mr(one->twin);
        if (one->twin_pd)
            nic_leave_pd(nic, one->twin_pd, one->twin_users);
    }
    free(one);
}

void registrar_collect(struct nic *nic)
{
    struct registrar *registrar = &nic->registrar;
    struct list done, waiting;

    list_init(&done);
    list_init(&waiting);
    pthread_mutex_lock(&registrar->lock);
    store_relaxed(&registrar->rung, 0);
    list_splice(&done, &registrar->done);
    pthread_mutex_unlock(&registrar->lock);
    while (!list_empty(&done))
        finish(list_entry(list_take(&done), struct registration, link));
    list_splice(&waiting, &registrar->waiting);
    while (!list_empty(&waiting))
        session_queue_command(list_entry(list_take(&waiting), struct session, command.link));
}

void registrar_wait(struct nic *nic)
{
    struct registrar *registrar = &nic->registrar;

    pthread_mutex_lock(&registrar->lock);
    while (registrar->running)
        pthread_cond_wait(&registrar->changed, &registrar->lock);
    pthread_mutex_unlock(&registrar->lock);
    registrar_collect(nic);
}

void registrar_close(struct nic *nic)
{
    struct registrar *registrar = &nic->registrar;

    registrar_wait(nic);
    pthread_cond_destroy(&registrar->changed);
    pthread_mutex_destroy(&registrar->lock);
}

/* ---- what is to be done ----------------------------------------------------- */

static enum registered begin_thread(struct registration *one, struct mr *mr, int *error)
{
    struct session *session = mr->pd->session;

    one->pin.fd = fcntl(one->pin.fd, F_DUPFD_CLOEXEC, 3);
    *error = one->pin.fd < 0 ? -errno : start(one);
    if (*error) {
        if (one->pin.fd >= 0)
            close(one->pin.fd);
        *error = settle(mr, one->pd, one->again ? &one->before : NULL, NULL, *error);
        free(one);
        return REGISTERED_NOW;
    }
    session->registration = one;
    one->tenant->registrations++;
    use_objects(one, 1);
    return REGISTERED_LATER;
}

enum registered registration_begin(struct mr *mr, struct pd *pd, uint32_t access, const struct mr *before,
                                   const struct sluice_command *command, int *error)
{
    struct session *session = pd->session;
    struct tenant *tenant = pd->context->tenant;
    struct ibv_mr *twin = NULL;

    *error = 0;
    if (!pd->nic || mr->memory->kind == SLUICE_MEMORY_PROCESS) {
        /* The NIC's key would lead to where the region was. */
        *error = settle(mr, pd, before, NULL, mr->nic ? -EOPNOTSUPP : 0);
        return REGISTERED_NOW;
    }
    struct pin pin = {
        .nic = nic_of_pd(pd),
        .pd = pd->nic,
        .fd = mr->memory->view.fd,
        .read_only = mr->memory->view.read_only,
        .address = mr->iova + mr->offset,
        .length = mr->length,
        .iova = mr->iova,
        .access = access & ~(uint32_t)IBV_ACCESS_ZERO_BASED,
    };

    if (mr->length <= REGISTRATION_AT_ONCE) {
        int pinned = registration_pin(&pin, &twin);

        *error = settle(mr, pd, before, twin, pinned);
        return REGISTERED_NOW;
    }
    if (tenant->registrations == REGISTRATION_THREADS) {
        if (before)
            mr_put_back(mr, before);
        else
            mr_free(session->engine, mr);
        list_append(&pin.nic->registrar.waiting, &session->command.link);
        return REGISTERED_WAITS;
    }
    struct registration *one = calloc(1, sizeof(*one));

    if (!one) {
        *error = settle(mr, pd, before, NULL, -ENOMEM);
        return REGISTERED_NOW;
    }
    *one = (struct registration){
        .session = session, .tenant = tenant, .mr = mr, .pd = pd, .again = before != NULL, .command = *command, .pin = pin};
    if (before)
        one->before = *before;
    list_init(&one->link);
    return begin_thread(one, mr, error);
}

void registration_abandon(struct session *session)
{
    struct registration *one = session->registration;

    if (!one)
        return;
    session->registration = NULL;
    one->tenant->registrations--;
    one->session = NULL;
    one->tenant = NULL;
    one->mr = NULL;
    use_objects(one, -1);
    one->command.status = EINVAL;
    if (!session->broken)
        session_answer(session, &one->command);
    /* The kernel won't take it back before the thread is done, whether the PD, which may be of another context, goes or stays. */
    one->twin_pd = one->pd->nic;
    one->twin_users = one->pd->nic_users;
    ++*one->twin_users;
    one->pd = NULL;
}
