/* SPDX-License-Identifier: MIT */
/* fuzz_sim.c - the whole simulator, with the input as its source of chance.
 *
 * Images, backups, guests and a host that misbehaves, as in tests/sim, whose
 * oracles judge the run; a broken promise is printed and aborts. */
#include "sim.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    sim_setup();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sim_run_bytes(data, size);
    return 0;
}
