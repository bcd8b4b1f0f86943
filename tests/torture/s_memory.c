/* SPDX-License-Identifier: MIT */
/* s_memory.c - backups from and to images in memory. */
#include "api.h"

static void memories(struct world *w, bool from, bool to)
{
    struct image *source = from ? image_memory(w, 30 * CLUSTER) : image_disk(w, NULL, FILL_DATA);
    struct image *target =
        to ? image_memory(w, 31 * CLUSTER)
           : image_disk(w, &(blkrepl_backend_info){.bytes = 30 * CLUSTER}, FILL_DATA);

    if (!world_open(w, NULL) || !image_open(source, NULL) || !image_open(target, NULL)) {
        return;
    }
    op_write(source, 3 * CLUSTER, 5 * CLUSTER, 0);
    op_write(source, 10 * CLUSTER + 77, 100, 0);
    world_settle(w);
    if (job_create_started(source, target, NULL)) {
        op_write(source, 0, 4 * CLUSTER, 0);
        op_zeroes(source, 4 * CLUSTER, 7 * CLUSTER, 0);
        world_settle(w);
    }
}

static void backup_memory_to_memory(struct world *w)
{
    memories(w, true, true);
}

static void backup_memory_to_disk(struct world *w)
{
    memories(w, true, false);
}

static void backup_disk_to_memory(struct world *w)
{
    memories(w, false, true);
}

/* ---- Vast and sparse ----------------------------------------------------------------------- */

#define VAST (UINT64_C(1) << 36)

static void note_result(void *user, int result)
{
    *(int *)user = result;
}

static int vast_io(struct world *w, blkrepl_image *image, bool writes, uint64_t at, uint8_t *byte)
{
    blkrepl_iovec iov = {.base = byte, .len = 1};
    int result = 1;
    blkrepl_completion done = {.fn = note_result, .user = &result};
    int rc = writes ? api_image_write(image, 0, at, &iov, 1, 0, &done)
                    : api_image_read(image, 0, at, &iov, 1, 0, &done);

    REQUIRE(rc == 0, "refused: %d", rc);
    world_settle(w);
    REQUIRE(result == 0 || (result == -ENOMEM && fault_fired() > 0), "io: %d", result);
    return result;
}

static void vast_check(struct world *w, blkrepl_job *job, blkrepl_image *target,
                       const uint8_t *held)
{
    blkrepl_job_info info = {.struct_size = sizeof info};

    api_job_query(job, &info);
    REQUIRE(info.state == BLKREPL_JOB_CONCLUDED, "state %u", info.state);
    if (info.result != BLKREPL_RESULT_DONE) {
        REQUIRE(info.error == -ENOMEM && info.error_side == BLKREPL_SIDE_TARGET &&
                    fault_fired() > 0,
                "failed: \"%s\"", info.message);
        return;
    }
    for (unsigned i = 0; i < 4; i++) {
        uint8_t byte = 99;

        vast_io(w, target, false, i * (VAST / 4) + i, &byte);
        REQUIRE(byte == held[i], "byte %u on the target is %u, not %u", i, byte, held[i]);
    }
}

static void backup_vast(struct world *w)
{
    blkrepl_image *images[2] = {NULL, NULL};
    blkrepl_backup_options o = {
        .struct_size = sizeof o, .reserve_bytes = 1, .workers_max = 2, .chunk_bytes_max = 1};
    blkrepl_job *job = NULL;
    uint8_t held[4] = {0};

    api_memory_grows(true);
    w->silent = true;
    if (!world_open(w, NULL)) {
        return;
    }
    for (int i = 0; i < 2; i++) {
        if (api_image_open_memory(w->ctx, VAST, NULL, &images[i]) < 0) {
            api_image_open_memory(w->ctx, VAST, NULL, &images[i]);
        }
    }
    for (unsigned i = 0; i < 4 && images[0]; i++) {
        uint8_t byte = (uint8_t)(i + 7);

        held[i] = vast_io(w, images[0], true, i * (VAST / 4) + i, &byte) == 0 ? byte : 0;
    }
    if (images[0] && images[1] &&
        (api_backup_start(images[0], images[1], &o, &job) == 0 ||
         api_backup_start(images[0], images[1], &o, &job) == 0)) {
        uint8_t byte = 55;

        vast_io(w, images[0], true, 2 * (VAST / 4) + 2, &byte);
        vast_check(w, job, images[1], held);
    }
    api_job_free(job);
    api_image_close(images[0]);
    api_image_close(images[1]);
}

const struct scenario memory_scenarios[] = {
    {"backup-vast", backup_vast, SCENARIO_ONE_ORDER},
    {"backup-memory-to-memory", backup_memory_to_memory, SCENARIO_ONE_ORDER},
    {"backup-memory-to-disk", backup_memory_to_disk, SCENARIO_ONE_ORDER},
    {"backup-disk-to-memory", backup_disk_to_memory, SCENARIO_ONE_ORDER},
    {NULL, NULL, 0},
};
