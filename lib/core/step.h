/* SPDX-License-Identifier: MIT */
/* step.h - what a state function answers. */
#ifndef BLKREPL_CORE_STEP_H
#define BLKREPL_CORE_STEP_H

#include <stdint.h>

enum step {
    STEP_WAIT,  /* something that was recorded will wake the machine */
    STEP_AGAIN, /* the state has changed: look again */
    STEP_DONE   /* the machine has ended */
};

/* A state as a bit in a table of successors. */
#define TO(state) (UINT32_C(1) << (state))

#endif
