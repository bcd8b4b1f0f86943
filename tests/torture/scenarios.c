/* SPDX-License-Identifier: MIT */
/* scenarios.c - all of them. */
#include "torture.h"

extern const struct scenario context_scenarios[];
extern const struct scenario image_scenarios[];
extern const struct scenario request_scenarios[];
extern const struct scenario bracket_scenarios[];
extern const struct scenario blocking_scenarios[];
extern const struct scenario backup_scenarios[];
extern const struct scenario memory_scenarios[];
extern const struct scenario control_scenarios[];
extern const struct scenario file_scenarios[];
extern const struct scenario bitmap_scenarios[];
extern const struct scenario bitmap_image_scenarios[];
extern const struct scenario backup_bitmap_scenarios[];
extern const struct scenario policy_scenarios[];
extern const struct scenario snapshot_scenarios[];
extern const struct scenario group_scenarios[];
extern const struct scenario verify_scenarios[];
extern const struct scenario throttle_scenarios[];

const struct scenario *const scenario_groups[] = {
    context_scenarios, image_scenarios,        request_scenarios,
    bracket_scenarios, blocking_scenarios,     backup_scenarios,
    memory_scenarios,  control_scenarios,      file_scenarios,
    bitmap_scenarios,  bitmap_image_scenarios, backup_bitmap_scenarios,
    policy_scenarios,  snapshot_scenarios,     group_scenarios,
    verify_scenarios,  throttle_scenarios,     NULL,
};
