/* SPDX-License-Identifier: Apache-2.0 */
/* Two MPI ranks send each other a megabyte and check what came. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SIZE = 1 << 20 };

int main(int argc, char **argv)
{
    int rank, size;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (size != 2)
        MPI_Abort(MPI_COMM_WORLD, 2);
    char *mine = malloc(SIZE), *theirs = malloc(SIZE), *wanted = malloc(SIZE);
    memset(mine, 'a' + rank, SIZE);
    memset(wanted, 'a' + !rank, SIZE);
    for (int i = 0; i < 100; i++) {
        memset(theirs, 0, SIZE);
        MPI_Sendrecv(mine, SIZE, MPI_CHAR, !rank, 0, theirs, SIZE, MPI_CHAR, !rank, 0, MPI_COMM_WORLD,
                     MPI_STATUS_IGNORE);
        if (memcmp(theirs, wanted, SIZE) != 0)
            MPI_Abort(MPI_COMM_WORLD, 1);
    }
    printf("rank %d of %d: exchanged\n", rank, size);
    MPI_Finalize();
    return 0;
}
