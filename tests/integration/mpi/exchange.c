/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two or more ranks: messages of all sizes to the next one, a sum over all, and a counter in one rank's memory that all
 * raise. Rank 0 prints what came of it.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

enum { LARGEST = 1 << 22, ROUNDS = 100 };

static int rank, ranks;

static unsigned char at(int who, int size, int index)
{
    return (unsigned char)(who * 31 + size + index * 7 + (index >> 8));
}

static int messages(void)
{
    unsigned char *out = malloc(LARGEST), *in = malloc(LARGEST);
    int next = (rank + 1) % ranks, before = (rank + ranks - 1) % ranks, wrong = 0;

    for (int size = 0; size <= LARGEST; size = size ? size * 4 : 1) {
        for (int i = 0; i < size; i++) {
            out[i] = at(rank, size, i);
            in[i] = 0;
        }
        MPI_Sendrecv(out, size, MPI_BYTE, next, size, in, size, MPI_BYTE, before, size, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        for (int i = 0; i < size; i++)
            wrong += in[i] != at(before, size, i);
    }
    free(out);
    free(in);
    return wrong;
}

static long counter(void)
{
    long *word, one = 1, old, last;
    MPI_Win window;

    MPI_Win_allocate(sizeof(*word), sizeof(*word), MPI_INFO_NULL, MPI_COMM_WORLD, &word, &window);
    *word = 0;
    MPI_Barrier(MPI_COMM_WORLD);
    MPI_Win_lock_all(0, window);
    for (int i = 0; i < ROUNDS; i++) {
        MPI_Fetch_and_op(&one, &old, MPI_LONG, 0, 0, MPI_SUM, window);
        MPI_Win_flush(0, window);
    }
    MPI_Win_unlock_all(window);
    MPI_Barrier(MPI_COMM_WORLD);
    last = *word;
    MPI_Win_free(&window);
    return last;
}

int main(int argc, char **argv)
{
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    int mine = messages(), all, sum;
    long raised = counter(), value = rank + 1;

    MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    int number = (int)value;

    MPI_Allreduce(&number, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    if (rank == 0)
        printf("%d ranks, %d bytes wrong, sum %d, counter %ld\n", ranks, all, sum, raised);
    MPI_Finalize();
    return 0;
}
